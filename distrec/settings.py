"""Files and `section.key=value` words → one validated dataclass; errors in the terms of the command line."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


class Schema(Generic[T]):
    """How the words of a command line become a `root`.

    `choices`: sections that are one class of several, told apart by their `name`, and the default name.
    `verbatim`: keys whose value on the command line is a text, braces and all.
    """

    def __init__(self, root: type[T], choices: Mapping[str, tuple[Any, str]], verbatim: Sequence[str] = ()):
        self._root = root
        self._adapter = TypeAdapter(root)
        self._defaults = {section: default for section, (_, default) in choices.items()}
        self._classes = {
            section: {get_args(get_type_hints(each)["name"])[0]: each for each in get_args(union)}
            for section, (union, _) in choices.items()
        }
        self._verbatim = verbatim

    def load(self, args: Sequence[str], overrides: Mapping[str, Any] | None = None) -> T:
        """Later wins.   Raises: ValueError, one line, naming the file or key, what is allowed and the nearest right key."""
        tree: dict[str, Any] = {}
        for arg in args:
            key, equals, text = arg.partition("=")
            if equals and re.fullmatch(r"[\w.]+", key):
                value = text if key in self._verbatim else _parse(text, f"the value of {key}")
                merge(tree, _nest(key, value))
            elif arg.endswith((".yaml", ".yml")):
                merge(tree, _read(Path(arg)))
            else:
                raise ValueError(f"{arg!r} is neither FILE.yaml nor section.key=value (see --help)")
        for key, value in (overrides or {}).items():
            merge(tree, _nest(key, value))
        for section, default in self._defaults.items():
            if isinstance(tree.get(section), dict):
                tree[section].setdefault("name", default)
        try:
            return self._adapter.validate_python(tree)
        except ValidationError as error:
            found = error.errors()
            places = [finding["loc"] for finding in found]  # a list that lost its wrong members is no second fault
            first = [f for f in found if not any(p[: len(f["loc"])] == f["loc"] != p for p in places)]
            raise ValueError("; ".join(self._explain(finding) for finding in first)) from None

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
            hint = f"did you mean {'.'.join([*shown[:-1], *near])!r}?" if near else f"known here: {', '.join(known)}"
            return f"unknown config key {key!r}; {hint}"
        if finding["type"] == "union_tag_invalid":
            tag = finding["ctx"]["tag"]
            near = difflib.get_close_matches(tag, classes, 1, 0.5)
            return f"unknown {section}.name {tag!r}; " + (
                f"did you mean {near[0]!r}?" if near else f"known: {', '.join(classes)}"
            )
        if finding["type"] == "union_tag_not_found":
            return f"{section} needs a name, one of: {', '.join(classes)}"
        message = finding["msg"].removeprefix("Value error, ")
        return f"{key}={finding['input']!r}: {message}" if key else message

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


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, except that a key written twice is an error."""

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


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ValueError(f"{where}, line {line}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not YAML: {str(error).splitlines()[0]}") from None
    except (ValueError, RecursionError) as error:  # a date that is none; thousands of brackets
        raise ValueError(f"{where}: not YAML: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"config file {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"config file {path}: not UTF-8 at byte {error.start}") from None
    tree = _parse(text, str(path)) or {}
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: a config file is a mapping of sections, got {type(tree).__name__}")
    return tree


def _nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def merge(tree: dict[str, Any], other: Mapping[str, Any]) -> None:
    """Merge in place, what comes later wins.  Another `name` is another class of section: its earlier keys are dropped."""
    if "name" in other and other["name"] != tree.get("name", other["name"]):
        tree.clear()
    for key, value in other.items():
        if isinstance(value, Mapping):
            below = tree.setdefault(key, {})
            if not isinstance(below, dict):
                below = tree[key] = {}
            merge(below, value)
        else:
            tree[key] = value
