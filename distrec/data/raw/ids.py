"""Ids of users and items of any type → text, by one rule for logs, item tables, sequences and histories.

An id is a text or a whole number: 7.0 in a column of floats is "7".  Blanks around a text are no part of it.
Missing are null, NaN, the empty text, and the words that programs write for nothing (`data.null_words` keeps those).
"""

from pathlib import Path

import polars as pl

from distrec.data.raw import lines
from distrec.knobs import Data
from distrec.runtime import brief, log

# Source: the words that pandas.read_csv takes for missing, that SQL dumps write (\N), and JavaScript (undefined).
WORDS = [
    *("nan", "NaN", "NAN", "-nan", "-NaN", "None", "none", "NONE", "null", "Null", "NULL", "<null>", "(null)", "NaT"),
    *("<NA>", "NA", "N/A", "n/a", "#NA", "#N/A", "#N/A N/A", "\\N", "undefined"),
]
# blanks of Unicode, and the marks without width that begin a file or come with copied text
_SPACES = " \t\n\v\f\r\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff\u200b" + "".join(
    map(chr, range(0x2000, 0x200B))
)
Faults = list[tuple[pl.Series, str]]  # (which rows, what is wrong with them)


def as_text(column: pl.Series) -> tuple[pl.Series, Faults, list[str]]:
    """Return (ids: text, null where missing; the rows that are no id; what was changed, in words).

    Raises: ValueError for a type whose values are no ids.
    """
    kind = column.dtype
    if isinstance(kind, pl.Categorical | pl.Enum) or kind in (pl.String, pl.Null):
        return _texts(column.cast(pl.String))
    if kind.is_integer():
        return column.cast(pl.String), [], []
    if isinstance(kind, pl.Decimal):
        wide = column.cast(pl.Decimal(38, kind.scale)).to_physical()
        scale = pl.Series([10**kind.scale], dtype=pl.Int128)
        return (wide // scale).cast(pl.String), [(wide % scale != 0, "is no whole number, and so no id")], []
    if not kind.is_float():
        raise ValueError(f"holds {kind}; an id is a text or a whole number")
    value = column.fill_nan(None)
    limit = float(2**24 if kind == pl.Float32 else 2**53 if kind == pl.Float64 else 2**11)
    large = value.abs() > limit
    text = value.set(large, None).cast(pl.Int64, strict=False).cast(pl.String)
    faults = [
        (value.is_infinite() | (~large & (value != value.floor())), "is no whole number, and so no id"),
        (large, f"is too large for {kind}, which has one value for several such numbers; write ids as int64 or text"),
    ]
    return text, faults, [f"holds {kind}: 7.0 is read as 7"]


def _texts(text: pl.Series) -> tuple[pl.Series, Faults, list[str]]:
    changes = []
    if text.str.contains_any(list(_SPACES)).any():
        bare = text.str.strip_chars(_SPACES)
        if changed := int((bare != text).sum()):
            example = text.filter((bare != text).fill_null(False)).item(0)
            changes.append(f"has blanks around {changed:,} values ({brief(example)} …), which are no part of an id")
        text = bare
    text = text.set((text == "").fill_null(False), None) if (text == "").any() else text
    first = text.first(ignore_nulls=True)
    if isinstance(first, str) and (first.endswith(".0") or first in WORDS):
        is_float = text.str.contains(r"^-?[0-9]+\.0+$")
        if is_float.any() and (is_float | text.is_in(WORDS)).all():
            changes.append("holds whole numbers written as floats: 7.0 is read as 7")
            text = text.str.replace(r"\.0+$", "")
    return text, [], changes


def read(table: pl.DataFrame, names: list[str], path: Path, config: Data) -> tuple[pl.DataFrame, int]:
    """Return (the rows with an id in every named column, as text; how many had none).

    `line` beside them names the rows; without it they are counted from 1.

    Raises: ValueError naming the first row whose id is none, or is missing (with `data.missing_ids=refuse`).
    """
    missing = pl.repeat(False, table.height, dtype=pl.Boolean, eager=True)
    for name in names:
        try:
            text, faults, changes = as_text(table[name])
        except ValueError as error:
            raise ValueError(f"{path}: column {name!r} {error}") from None
        for rows, what in faults:
            _refuse(table, name, rows, path, what)
        for change in changes:
            log(f"{path}: column {name!r} {change}")
        without = text.is_null()
        words = text.is_in(WORDS).fill_null(False)
        if words.any():
            without = _words(table, name, words, path, config) | without
        if config.missing_ids == "refuse":
            _refuse(table, name, without, path, "is missing or empty; mend the file, or set data.missing_ids=drop")
        missing |= without
        table = table.with_columns(text.alias(name))
    dropped = int(missing.sum())
    return (table.filter(~missing) if dropped else table), dropped


def complete(table: pl.DataFrame, name: str, path: Path) -> pl.Series:
    """Return the ids of a column as text, where each row has to have one.   Raises: ValueError naming the first that has none."""
    try:
        text, faults, changes = as_text(table[name])
    except ValueError as error:
        raise ValueError(f"{path}: column {name!r} {error}") from None
    for rows, what in (*faults, (text.is_null(), "is no id")):
        _refuse(table, name, rows, path, what)
    for change in changes:
        log(f"{path}: column {name!r} {change}")
    return text


def _words(table: pl.DataFrame, name: str, words: pl.Series, path: Path, config: Data) -> pl.Series:
    """Which rows are without an id as it spells a missing value; with `data.null_words`, none."""
    most = table[name].filter(words).value_counts(sort=True).head(3).rows()
    counts = ", ".join(f"{word!r} in {n:,} rows" for word, n in most)
    if config.null_words:
        log(f"{path}: column {name!r} has {counts}: a {name} like others, as data.null_words=true says")
        return words & False
    if config.missing_ids == "refuse":
        what = "is a word for a missing value, which is no id"
        _refuse(table, name, words, path, f"{what} ({counts}); mend the file, or set data.missing_ids=drop, or data.null_words=true if it is a name")  # fmt: skip
    log(f"{path}: column {name!r} has {counts}: words for a missing value")
    return words


def _refuse(table: pl.DataFrame, name: str, rows: pl.Series, path: Path, what: str) -> None:
    if rows.any():
        lines.require(table.with_columns(wrong=rows), name, pl.col("wrong"), path, what)
