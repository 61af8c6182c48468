"""What a parser of JSON lines lets pass: doubled keys, numbers with more digits than a double has, words for no number."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import polars as pl

from distrec.runtime import brief

_DIGITS = 16  # from which a double may not have all of them
_SAMPLE = 1000  # rows


def parse(text: bytes) -> Any:
    """Parse JSON as its standard has it.   Raises: ValueError, also for NaN and Infinity, and for a number beyond a double."""
    return json.loads(text, parse_constant=_refuse_word, parse_float=_finite)


def advice(text: bytes) -> str:
    """Return what to do about a line that is no JSON object, "" if it is like nothing known."""
    bare = text.strip()
    if b"\r" in bare:
        return "; its lines end in CR alone: write LF (tr '\\r' '\\n')"
    if bare.startswith(b"["):
        return "; an array: write one object a line (jq -c '.[]')"
    if bare.startswith(b"{") and bare.endswith(b"},") and _is_object(bare[:-1]):
        return "; remove the comma behind each object"
    if bare == b"{" or (bare.startswith(b"{") and bare.endswith((b",", b"[", b"{"))):
        return "; an object that goes on in the next line: write one object a line (jq -c .)"
    if re.search(rb"}\s*{", bare):
        return "; several objects in one line: write one a line (jq -c .)"
    return ""


def _is_object(text: bytes) -> bool:
    try:
        return isinstance(parse(text), dict)
    except ValueError:
        return False


def doubled(block: bytes, frame: pl.DataFrame) -> tuple[int, str] | None:
    """Return the first row in which one of the columns of `frame` stands twice as a key, and what is wrong."""
    text = None
    for column in frame.get_columns():
        key = _key(column.name)
        if block.count(key.encode()) <= len(column) - column.null_count():
            continue
        text = _rows(block) if text is None else text
        for row in (text.str.count_matches(rf"{_pattern(key)}\s*:") > 1).arg_true():
            if value := _twice(text[row].encode(), [column.name]):
                return row, value
    return None


def exact(block: bytes, column: pl.Series) -> pl.Series:
    """Return a field's texts, of numbers with a point and many digits as the file writes them, where a parser cuts them.

    All rows are looked at where one of the first has lost digits, or where a later number has more than the first have.
    """
    longest = column.str.len_bytes().max()
    if not isinstance(longest, int):
        return column
    if not column.str.contains(".", literal=True).any():
        return _exact(block, column) if longest >= _DIGITS and _has_floats(block, column.name) else column
    first = column.head(_SAMPLE)
    sample = _exact(b"\n".join(block.split(b"\n", _SAMPLE)[: len(first)]), first)
    has_more = longest > max(_DIGITS + 1, sample.str.len_bytes().max() or 0)  # pyright: ignore[reportOperatorIssue]
    return _exact(block, column) if has_more or not sample.equals(first, null_equal=True) else column


def long_floats(block: bytes, column: pl.Series) -> pl.Series:
    """Return the rows of a field of whole numbers in which a number with a point or an exponent is 2^53 or more."""
    is_long = (column.str.len_bytes() >= _DIGITS).fill_null(False)
    if not is_long.any() or not _has_floats(block, column.name):
        return is_long & False
    written = _rows(block).str.contains(rf"{_pattern(_key(column.name))}\s*:\s*-?[0-9]+[.eE]")
    return is_long & written & (column.cast(pl.Float64, strict=False).abs() >= 2**53).fill_null(False)


def _has_floats(block: bytes, name: str) -> bool:
    floats = rf"{_pattern(_key(name))}\s*:\s*-?[0-9]+[.eE]"
    return bool(pl.Series([block]).cast(pl.String).str.contains(floats).item())


def _exact(block: bytes, column: pl.Series) -> pl.Series:
    text = _rows(block)
    number = r"-?[0-9]+\.[0-9]+(?:[eE][+-]?[0-9]+)?"
    written = text.str.extract(rf'{_pattern(_key(column.name))}\s*:\s*"?({number})"?\s*[,}}]')
    same = (written.cast(pl.Float64) == column.cast(pl.Float64, strict=False)).fill_null(False)
    odd = (column.str.contains(f"^{number}$") & ~same).fill_null(False).arg_true()
    result = written.zip_with(same & (written.str.len_bytes() > _DIGITS).fill_null(False), column).alias(column.name)
    if not len(odd):
        return result
    values = [str(json.loads(text[row], parse_float=str)[column.name]) for row in odd]  # a key in a key, say
    return result.scatter(odd, values)


def _rows(block: bytes) -> pl.Series:
    return pl.Series([block]).cast(pl.String).str.split("\n").explode()


def _key(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _pattern(key: str) -> str:
    """The regular expression, in Rust's dialect, that matches a text alone."""
    return re.sub(r"([\\.+*?()|\[\]{}^$#&~-])", r"\\\1", key)


def _twice(text: bytes, names: Sequence[str]) -> str | None:
    found: list[str] = []

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        found[:] = [  # the outermost object comes last
            f"has {name!r} {keys.count(name)} times ({', '.join(brief(v) for k, v in pairs if k == name)})"
            for name in names
            if keys.count(name) > 1
        ]
        return dict(pairs)

    try:
        json.loads(text, object_pairs_hook=check)
    except ValueError:  # another fault, which is told where the row is read
        return None
    return f"{found[0]}; a key stands once in an object" if found else None


def _refuse_word(word: str) -> Any:
    raise ValueError(f"{word} is no JSON; write null")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text[:40]} is beyond any number of JSON's readers; write it as a text")
    return number
