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
# what nobody sees and another id holds: marks of direction, soft hyphens, joiners, control characters
_UNSEEN = r"\x01-\x08\x0e-\x1f\x7f\x{ad}\x{61c}\x{180e}\x{200b}\x{200e}\x{200f}\x{202a}-\x{202e}\x{2060}-\x{2064}\x{2066}-\x{2069}\x{feff}"
_MARKED = rf"[{_UNSEEN}]|^[\x{{200c}}\x{{200d}}]|[\x{{200c}}\x{{200d}}]$"  # joiners stand within words, too
# a value without any of them is an id as it stands
_ODD = [*_SPACES, ".", "E+", "e+", *map(chr, (*range(1, 9), *range(14, 32), 0x7F, 0xAD, 0x61C, 0x180E))]
_ODD += [*map(chr, (*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A)))]
_FLOAT, _WHOLE = r"^-?[0-9]+\.0+$", "^-?[0-9]+$"
_POWER = r"^-?[0-9](?:[.,][0-9]+[eE]\+?|[eE]\+)[0-9]+$"  # 1.23457E+11
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
    large = value.abs() >= limit  # which the next whole number has been rounded to, too
    text = value.set(large, None).cast(pl.Int64, strict=False).cast(pl.String)
    faults = [
        (value.is_infinite() | (~large & (value != value.floor())), "is no whole number, and so no id"),
        (large, f"is too large for {kind}, which has one value for several such numbers; write ids as int64 or text"),
    ]
    return text, faults, [f"holds {kind}: 7.0 is read as 7"]


def _texts(text: pl.Series) -> tuple[pl.Series, Faults, list[str]]:
    faults, changes = [], []
    odd = text.filter(text.str.contains_any(_ODD))
    if len(odd) and odd.str.contains_any(list(_SPACES)).any():
        bare = text.str.strip_chars(_SPACES)
        if changed := int((bare != text).sum()):
            example = text.filter((bare != text).fill_null(False)).item(0)
            changes.append(f"has blanks around {changed:,} values ({brief(example)} …), which are no part of an id")
        text, odd = bare, odd.str.strip_chars(_SPACES)
    text = text.set((text == "").fill_null(False), None) if (text == "").any() else text
    if len(marked := odd.filter(odd.str.contains(_MARKED))):
        changes.append(
            f"has marks that nobody sees in {len(marked):,} values ({brief(marked[0])} …), which are other ids than "
            "the same without them: remove them from the file, if they are no part of the ids"
        )
    if odd.str.contains(f"{_FLOAT}|{_POWER}").any():
        text, faults, more = _numbers(text)
        changes += more
    return text, faults, changes


def _numbers(text: pl.Series) -> tuple[pl.Series, Faults, list[str]]:
    """Read 7.0 as 7 where all of a column are numbers; tell of what may be one id in two spellings, or several in one."""
    is_float, is_power, is_whole = (text.str.contains(kind).fill_null(False) for kind in (_FLOAT, _POWER, _WHOLE))
    is_all = (is_float | is_power | is_whole | text.is_in(WORDS)).all()
    faults, changes = [], []
    if is_all:
        what = "is shortened to a power of ten, as spreadsheets and floats write long numbers: several ids may have become this one; write them as text or whole numbers"
        faults.append((is_power, what))
    elif is_power.any():
        changes.append(
            f"has {int(is_power.sum()):,} values such as {brief(text.filter(is_power)[0])}, to which a spreadsheet may "
            "have shortened longer numbers: several ids may have become one; write the column as text"
        )
    if not is_float.any():
        return text, faults, changes
    bare = text.str.replace(r"\.0+$", "").zip_with(is_float, text)
    if is_all:
        large = is_float & (bare.cast(pl.Int128, strict=False).abs() >= 2**53).fill_null(True)
        faults.append(
            (
                large,
                "is too large for a float, which has one value for several such numbers; write ids as whole numbers",
            )
        )
        part = f" ({int(is_float.sum()):,} of {len(text):,} values)" if is_whole.any() else ""
        return bare, faults, [*changes, f"holds whole numbers written as floats{part}: 7.0 is read as 7"]
    both = bare.filter(is_float & bare.is_in(text.filter(is_whole).unique().implode()))
    if len(both):
        changes.append(
            f"has {brief(both[0])} and {brief(text.filter(is_float & (bare == both[0]))[0])}, taken as two ids, as texts "
            "stand among them: write them alike, if they are one"
        )
    return text, faults, changes


def read(table: pl.DataFrame, names: list[str], path: Path, config: Data) -> tuple[pl.DataFrame, int]:
    """Return (the rows with an id in every named column, as text; how many had none).

    `line` beside them names the rows; without it they are counted from 1.

    Raises: ValueError naming the first row whose id is none, or is missing (with `data.missing_ids=refuse`).
    """
    missing = pl.repeat(False, table.height, dtype=pl.Boolean, eager=True)
    for name in names:
        text = read_column(table, name, path)
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
    text = read_column(table, name, path)
    _refuse(table, name, text.is_null(), path, "is no id")
    return text


def read_column(table: pl.DataFrame, name: str, path: Path) -> pl.Series:
    """Return the ids of a column as text, null where one is missing.   Raises: ValueError naming the first that is no id."""
    try:
        text, faults, changes = as_text(table[name])
    except ValueError as error:
        raise ValueError(f"{path}: column {name!r} {error}") from None
    for rows, what in faults:
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
