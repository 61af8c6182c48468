"""What the types of a config say of its values: which are texts, which are paths, which are lists of them."""

import dataclasses
import functools
import operator
import os
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

Hint = Any  # a type as an annotation gives it, or Like; None: there is no such key


@dataclass(frozen=True)
class Like:
    """Marks a dictionary whose keys are those of `root`, nested or with dots: Annotated[dict[str, Any], Like(Config)].

    `many`: each of them with a list of values.
    """

    root: Hint
    many: bool = False


def below(hint: Hint, key: str) -> Hint:
    """The type of a key of a section; None where it has none of this name.   A type of several classes: of any of them."""
    results: list[Hint] = []
    for kind in _kinds(hint):
        if isinstance(kind, Like):
            found = functools.reduce(lambda at, part: below(at, part), key.split("."), kind.root)
            return Any if found is None else Like(found, True) if kind.many else found
        if dataclasses.is_dataclass(kind) and key in _fields(kind):
            results.append(_fields(kind)[key])
        elif get_origin(kind) is dict:
            results.append(get_args(kind)[1])
        elif kind is Any:
            results.append(Any)
    return functools.reduce(operator.or_, results) if results else None


def element(hint: Hint, place: int = 0) -> Hint:
    """The type of what stands at this place of a list; None where a value is no list."""
    for kind in _kinds(hint):
        if isinstance(kind, Like) and kind.many:
            return kind.root
        if get_origin(kind) in (tuple, list) and get_args(kind):
            members = [each for each in get_args(kind) if each is not ...]
            return members[min(place, len(members) - 1)]
    return None


def names(hint: Hint) -> list[str]:
    """The keys of a section, those of each of its classes."""
    sections = [kind for kind in _kinds(hint) if dataclasses.is_dataclass(kind)]
    return list(dict.fromkeys(key for section in sections for key in _fields(section)))


def is_optional(hint: Hint) -> bool:
    return type(None) in _kinds(hint)


def is_text(hint: Hint) -> bool:
    """Whether every value but none is a text or a path."""
    kinds = _something(hint)
    return bool(kinds) and all(_is_text(kind) for kind in kinds)


def takes_text(hint: Hint) -> bool:
    """Whether a value that is no list and no mapping is a text or a path.

    Where only lists are taken, a lone text stands for a list of one.
    """
    single = [kind for kind in _something(hint) if get_origin(kind) not in (tuple, list, dict)]
    return all(map(_is_text, single)) if single else element(hint) is not None and takes_text(element(hint))


def opens(hint: Hint) -> tuple[str, ...]:
    """The signs with which a list or a mapping begins, of those that a value may be."""
    origins = {get_origin(kind) for kind in _kinds(hint)}
    return tuple(sign for sign, kinds in (("[", {tuple, list}), ("{", {dict})) if kinds & origins)


def settled(value: Any, hint: Hint, key: str = "") -> Any:
    """The value of a key as its type wants it: home folders in place of ~, a lone text as a list of one.

    Raises: ValueError where a path cannot be meant as it stands, and for a truth value where a number is wanted.
    """
    if hint is None or hint is Any:
        return value
    if isinstance(value, dict):
        return {name: settled(each, below(hint, name), f"{key}.{name}".lstrip(".")) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [settled(each, element(hint, place), key) for place, each in enumerate(value)]
    kinds = _something(hint)
    if isinstance(value, bool) and kinds and all(kind in (int, float) for kind in kinds):
        raise ValueError(f"{key}={str(value).lower()}: is a number, not true or false")
    if not isinstance(value, str):
        return value
    if kinds and all(get_origin(kind) in (tuple, list) for kind in kinds) and takes_text(hint):
        return [settled(value, element(hint), key)]
    return place(value, key) if Path in kinds else value


def place(text: str, key: str) -> str:
    """A path as it was typed, but with the home folder in place of a ~ or ~user at its head.

    Raises: ValueError for an address, a user without a home folder, a variable of the shell that nobody has filled in (unless a folder
    is really called so), and control characters.
    """
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError(f"{key}={text!r}: a path has no line breaks or control characters; rename it")
    whole = os.path.expanduser(text)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) and not Path(text).exists():
        raise ValueError(f"{key}={text}: remote paths are not read or written; copy what is there here first")
    if text.startswith("~") and whole == text:
        user = text.split("/")[0]
        raise ValueError(f"{key}={text}: {user} has no home folder; ./{text} is a file or folder that is called so")
    parts = Path(whole).parts
    for i, part in enumerate(parts):
        if os.path.expandvars(part) != part and not Path(*parts[: i + 1]).exists():
            raise ValueError(f"{key}={text}: {part} is left to a shell, and none has read it; write the path itself")
    if text.startswith("./~"):  # which would be a home folder, once the dot is gone
        return str(Path(text).absolute())
    return whole


def placed(words: Mapping[str, str], *keys: str) -> dict[str, str]:
    """The words of a command by their keys, with `place` done to those that are paths.   Raises: as `place` does."""
    return {key: place(text, key) if key in keys else text for key, text in words.items()}


@functools.cache
def _fields(section: Any) -> dict[str, Hint]:
    every = get_type_hints(section, include_extras=True)
    return {field.name: every[field.name] for field in dataclasses.fields(section)}


def _kinds(hint: Hint) -> tuple[Any, ...]:
    """The types of which a value may be one: unions and annotations taken apart.

    A text that may also be a path is Annotated[str, Path].
    """
    if get_origin(hint) is Annotated:
        base, *marks = get_args(hint)
        return tuple(mark for mark in marks if mark is Path or isinstance(mark, Like)) or _kinds(base)
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(kind for each in get_args(hint) for kind in _kinds(each))
    return () if hint is None else (hint,)


def _something(hint: Hint) -> list[Any]:
    return [kind for kind in _kinds(hint) if kind is not type(None)]


def _is_text(kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return all(isinstance(value, str) for value in get_args(kind))
    return kind in (str, Path)
