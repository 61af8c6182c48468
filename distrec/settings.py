"""Files and `section.key=value` words → one validated dataclass; errors in the terms of the command line.

What a value may be is read from the types of the dataclass.  Where a key is a text or a path, a word of the command line is
that text to its last character, and an unquoted value of a file is the text that stands there: no date, number, truth value,
quote or comment is read in it.  Everything else is YAML, by the core schema of YAML 1.2.
"""

import difflib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from distrec import hints
from distrec.hints import Hint

T = TypeVar("T")
_MOST = 100_000  # values of a file, those repeated by anchors included
_NONE = ("null", "none")  # words for no value, where a key may have none


class Schema(Generic[T]):
    """How the words of a command line become a `root`.

    `choices`: sections that are one class of several, told apart by their `name`, and the default name.
    """

    def __init__(self, root: type[T], choices: Mapping[str, tuple[Any, str]]):
        self._root = root
        self._adapter = TypeAdapter(root)
        self._defaults = {section: default for section, (_, default) in choices.items()}
        self._classes = {
            section: {get_args(get_type_hints(each)["name"])[0]: each for each in get_args(union)}
            for section, (union, _) in choices.items()
        }

    def load(self, args: Sequence[str], overrides: Mapping[str, Any] | None = None) -> T:
        """Later wins, of words in a row the `name` of a section first.

        Raises: ValueError, one line, naming the file or key, what is allowed and the nearest right key.
        """
        tree: dict[str, Any] = {}
        words: dict[str, Any] = {}
        for arg in args:
            key, equals, text = arg.partition("=")
            if re.search("[\ud800-\udfff]", arg):
                raise ValueError(f"{arg!a} is not UTF-8: rename what is called so")
            is_file = arg.endswith((".yaml", ".yml"))
            if equals and re.fullmatch(r"[\w.]+", key) and not (is_file and Path(arg).is_file()):
                words.pop(key, None)  # the later of two stands where it stands
                words[key] = self._value(key, text)
            elif is_file:
                self._add(tree, words)
                words = {}
                merge(tree, _read(Path(arg), self._root), self._defaults)
            else:
                raise ValueError(f"{arg!r} is neither FILE.yaml nor section.key=value (see --help)")
        self._add(tree, words)
        self._add(tree, overrides or {})
        for section, default in self._defaults.items():
            if isinstance(tree.get(section), dict):
                tree[section].setdefault("name", default)
        tree = hints.settled(tree, self._root)
        try:
            return self._adapter.validate_python(tree)
        except ValidationError as error:
            found = error.errors()
            places = [finding["loc"] for finding in found]  # a list that lost its wrong members is no second fault
            first = [f for f in found if not any(p[: len(f["loc"])] == f["loc"] != p for p in places)]
            raise ValueError("; ".join(self._explain(finding) for finding in first)) from None

    def _add(self, tree: dict[str, Any], words: Mapping[str, Any]) -> None:
        """Merge keys with dots: whole sections, then which class a section is, then its other keys, whatever their order."""
        names = {f"{section}.name" for section in self._defaults}
        for key in sorted(words, key=lambda key: ("." in key, key not in names)):
            merge(tree, _nest(key, words[key]), self._defaults)

    def word(self, key: str, value: Any) -> str:
        """Write the word that `load` reads as this value of this key.   Raises: ValueError where no word says it."""
        is_verbatim = isinstance(value, str) and hints.takes_text(self._hint(key))
        text = value if is_verbatim else json.dumps(value, ensure_ascii=False)
        if (said := self._value(key, text)) != value:
            raise ValueError(f"{key}={text} on a command line says {said!r}, not {value!r}: choose another value")
        return f"{key}={text}"

    def _value(self, key: str, text: str) -> Any:
        """What a word says.   Raises: ValueError where there is no such key, or what it says is no value."""
        hint = self._hint(key)
        may_be_none = hints.is_optional(hint)
        if not text:
            raise ValueError(f"{key}= has no value" + f"; {key}=null is none" * may_be_none)
        if may_be_none and text.lower() in _NONE:
            return None
        if hints.takes_text(hint) and not text.startswith(hints.opens(hint)):
            return text
        return _parse(text, f"the value of {key}", hint, is_word=True)

    def _hint(self, key: str) -> Hint:
        """The type of a key.   Raises: ValueError naming the nearest key."""
        hint: Hint = self._root
        parts = key.split(".")
        for i, part in enumerate(parts):
            if (inner := hints.below(hint, part)) is None:
                if not (known := hints.names(hint)):
                    raise ValueError(
                        f"unknown config key {key!r}; {'.'.join(parts[:i])} is no section: it takes a value"
                    )
                near = difflib.get_close_matches(part, known, 1, 0.5)
                raise ValueError(f"unknown config key {key!r}; {_nearest(parts[:i], near, known)}")
            hint = inner
        return hint

    def _explain(self, finding: Any) -> str:
        """One of pydantic's findings in the terms of the command line."""
        path = [str(part) for part in finding["loc"]]
        section = path[0] if path else ""
        classes = self._classes.get(section, {})
        shown = path if len(path) < 2 or path[1] not in classes else [section, *path[2:]]
        key = ".".join(shown)
        if finding["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            known = self._keys(path[:-1])
            near = difflib.get_close_matches(path[-1], known, 1, 0.5)
            return f"unknown config key {key!r}; {_nearest(shown[:-1], near, known)}"
        if finding["type"] == "union_tag_invalid":
            tag = finding["ctx"]["tag"]
            near = difflib.get_close_matches(tag, classes, 1, 0.5)
            return f"unknown {section}.name {tag!r}; " + (
                f"did you mean {near[0]!r}?" if near else f"known: {', '.join(classes)}"
            )
        if finding["type"] == "union_tag_not_found":
            return f"{section} needs a name, one of: {', '.join(classes)}"
        if finding["type"] in ("missing", "missing_argument"):
            return f"{key} has no value: give it in a file, or as {key}=…"
        if finding["input"] is None and self._keys(path):
            return f"{key} is empty: indent its keys below it, or leave it out"
        message = finding["msg"].removeprefix("Value error, ")
        return f"{key}={finding['input']!r:.80}: {message}" if key else message

    def _keys(self, path: Sequence[str]) -> list[str]:
        """The keys of the section at `path` (a name stands in pydantic's path as a section)."""
        section: Any = self._root
        for i, part in enumerate(path):
            chosen = self._classes.get(path[0], {}).get(part) if i == 1 else None
            hints = get_type_hints(section) if is_dataclass(section) else {}
            section = (
                chosen or hints.get(part) or next((each for each in get_args(section) if is_dataclass(each)), section)
            )
        return [f.name for f in fields(section)] if is_dataclass(section) else []


def plain(section: Any) -> Any:
    """A config or a section of it as JSON-ready dictionaries (what stamps record)."""
    return TypeAdapter(type(section)).dump_python(section, mode="json")


def _nearest(before: Sequence[str], near: Sequence[str], known: Sequence[str]) -> str:
    return f"did you mean {'.'.join([*before, *near])!r}?" if near else f"known here: {', '.join(known)}"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, except that a key written twice is an error, and that it knows the scalars of YAML 1.2 alone.

    Deviation: YAML 1.1, which PyYAML follows, has 010 as eight, 1:30 as ninety, `no` as false, and 1e-3 as a text.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # pyright: ignore[reportIncompatibleVariableOverride]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, "a key is a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_TAG = "tag:yaml.org,2002:"
for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})$"), _first)


def _parse(text: str, where: str, hint: Hint, is_word: bool = False) -> Any:
    """YAML as a value of this type.   Raises: ValueError, one line."""
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(
            f"{where}, line {line}: holds the character U+{ord(text[error.position]):04X}: remove it"
        ) from None
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        _keep_texts(node, hint)
        if is_word and (rest := text[node.end_mark.pointer :].strip()):
            raise ValueError(f"{rest} would be left out as a comment")
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        remedy = "" if isinstance(error, yaml.constructor.ConstructorError) else "; quote a text that has signs in it"
        raise ValueError(f"{where}, line {line}: not YAML: {error.problem}{remedy}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not YAML: {str(error).splitlines()[0]}") from None
    except (ValueError, RecursionError) as error:  # thousands of brackets
        raise ValueError(f"{where}: not YAML: {error}") from None
    finally:
        loader.dispose()


def _check_size(node: yaml.Node) -> None:
    """Raises: yaml.MarkedYAMLError where anchors repeat themselves or each other without end."""
    rest, visited = [node], 0
    while rest:
        each = rest.pop()
        visited += 1
        if visited > _MOST:
            raise yaml.MarkedYAMLError(
                problem=f"more than {_MOST:,} values, by anchors that repeat each other", problem_mark=node.start_mark
            )
        if isinstance(each, yaml.MappingNode):
            rest += [value for _, value in each.value]
        elif isinstance(each, yaml.SequenceNode):
            rest += each.value


def _keep_texts(node: yaml.Node, hint: Hint) -> None:
    """Let scalars of a document be texts where the type wants texts, whatever YAML would make of them.

    Raises: yaml.MarkedYAMLError where YAML sees a list, a mapping or a comment in what is meant as a text.
    """
    if hint is None or hint is Any:
        return
    if hints.is_text(hint) and not isinstance(node, yaml.ScalarNode):
        kind = "mapping" if isinstance(node, yaml.MappingNode) else "list"
        raise yaml.MarkedYAMLError(problem=f"a text that YAML takes for a {kind}", problem_mark=node.start_mark)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _keep_texts(value, hints.below(hint, key.value) if isinstance(key, yaml.ScalarNode) else None)
    elif isinstance(node, yaml.SequenceNode):
        for place, each in enumerate(node.value):
            _keep_texts(each, hints.element(hint, place))
    elif isinstance(node, yaml.ScalarNode) and node.style is None and hints.takes_text(hint):
        line = str(node.end_mark.buffer)[node.end_mark.pointer :].partition("\n")[0]
        if sign := re.match(r" (#[^#\s]\S*)", line):
            raise yaml.MarkedYAMLError(problem=f"{sign[1]} begins a comment", problem_mark=node.end_mark)
        is_home = node.value == "~" and not hints.is_optional(hint)
        if is_home or (node.tag != f"{_TAG}null" and node.tag.startswith(_TAG)):
            node.tag = f"{_TAG}str"


def _read(path: Path, root: Hint) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"config file {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"config file {path}: not UTF-8 at byte {error.start}") from None
    tree = _parse(text, str(path), root)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: a config file is a mapping of sections, got {type(tree).__name__}")
    return tree


def _nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def merge(tree: dict[str, Any], other: Mapping[str, Any], classes: Collection[str] = (), key: str = "") -> None:
    """Merge in place, what comes later wins.

    `classes`: the sections that are one of several classes by their `name`; of another class the earlier keys are dropped.

    Raises: ValueError for a single key of what is no mapping so far, which would be dropped as a whole.
    """
    for name, value in other.items():
        if not isinstance(value, Mapping):
            tree[name] = value
            continue
        whole, below = f"{key}.{name}".lstrip("."), tree.setdefault(name, {})
        if below is None or isinstance(below, list):
            below = tree[name] = {}
        if not isinstance(below, dict):
            raise ValueError(
                f"{whole}={below!r} is one value, to which no {whole}.{next(iter(value), '…')} can be added: give it as a mapping"
            )
        if name in classes and value.get("name", below.get("name")) != below.get("name"):
            below.clear()
        merge(below, value, (), whole)
