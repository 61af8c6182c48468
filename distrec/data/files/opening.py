"""One door for tables of any kind: (rows, their lines) of a file, with the columns that its hive folder's name gives."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from distrec.data.files import attributes, delimited, paths, text
from distrec.data.files.delimited import Style
from distrec.data.files.paths import Part
from distrec.data.raw import lines
from distrec.knobs import Data
from distrec.runtime import log, several


def check(config: Data) -> None:
    """Raises: ValueError naming the key, for a separator or an encoding that is none."""
    text.check_encoding(config.encoding)
    _one_character(config.separator)


def names(part: Part, config: Data) -> list[str]:
    """The columns of a part, those of its folders' names last; of JSON lines, the fields of the first object."""
    inside = _inside(part.path, config)
    return [*inside, *(name for name in part.values if name not in inside)]


def read(part: Part, wanted: Sequence[str], ids: Sequence[str], config: Data) -> tuple[pl.DataFrame, pl.Series]:
    """(the wanted columns, in Parquet with their types and else as text; the line or row of each row).

    A field that JSON lines do not have is null in all rows, since a null may be left out there.

    Raises: ValueError naming file and line for a column that is missing or stands twice, for `ids` that are lists,
    objects or truth values, and for a file that is not what its name says.
    """
    inside = _inside(part.path, config)
    _refuse_patterns(part.path, wanted)
    known = [*inside, *part.values]
    from_folder = [name for name in wanted if name in part.values and name not in inside]
    from_file = [name for name in wanted if name not in from_folder]
    match paths.kind(part.path):
        case "parquet":
            refuse_absent(part.path, from_file, known)
            _check_ids(part.path, ids)
            table = _collect(part.path, from_file)
            line = _rows(table)
        case "jsonl":
            schema = dict.fromkeys(from_file, pl.String)
            table = lines.read_json_lines(
                part.path, schema, encoding=config.encoding, ids=[name for name in ids if name in from_file]
            )
            line = table["line"]
        case kind:
            table, line = delimited.read(part.path, from_file, _style(kind, config))
    folder = [pl.lit(part.values[name], pl.String).alias(name) for name in from_folder]
    return table.select(*from_file, *folder).select(wanted), line


def read_all(part: Part, key: str, config: Data) -> tuple[pl.DataFrame, pl.Series]:
    """(all columns as text, the line or row of each row); `key` holds ids, which may be numbers of any type.

    Lists of plain values are joined by a bar, what is nested deeper is JSON; bytes that are no text are left out, with a word.

    Raises: ValueError as `read` does.
    """
    _refuse_patterns(part.path, _inside(part.path, config))
    match paths.kind(part.path):
        case "parquet":
            refuse_absent(part.path, [key], [*_schema(part.path), *part.values])
            _check_ids(part.path, [key])
            table = _without_bytes(_collect(part.path, None), part.path, key)
            line, typed = _rows(table), [key] if table.schema.get(key, pl.String()).is_numeric() else []
            table = table.select(
                column if column.name in typed else attributes.as_text(column) for column in table.get_columns()
            )
        case "jsonl":
            table, line = attributes.read_json_table(part.path, key, config.encoding)
        case kind:
            needed = [] if key in part.values else [key]
            table, line = delimited.read(part.path, None, _style(kind, config), needed)
    folder = [pl.lit(value, pl.String).alias(name) for name, value in part.values.items() if name not in table.columns]
    return table.with_columns(folder), line


def _inside(path: Path, config: Data) -> list[str]:
    match paths.kind(path):
        case "parquet":
            return list(_schema(path))
        case "jsonl":
            return attributes.first_fields(path, config.encoding)
        case kind:
            return delimited.header(path, _style(kind, config))


def _style(kind: str, config: Data) -> Style:
    separator = "\t" if kind == "tsv" else _one_character(config.separator)
    return Style(separator, config.encoding, config.quoted)


def _one_character(separator: str | None) -> str:
    if separator is None:
        return ","
    if not separator:
        raise ValueError(
            "data.separator='' is empty; put it in quotes (in YAML separator: '|'), or leave it out for a comma"
        )
    mark = {"\\t": "\t", "tab": "\t"}.get(separator, separator)
    if len(mark) != 1 or not mark.isascii() or mark in '\r\n"':
        raise ValueError(
            f"data.separator={separator!r} is not one character such as ; or | or \\t; replace it in the file first"
        )
    return mark


def refuse_absent(path: Path, wanted: Sequence[str], known: Sequence[str]) -> None:
    """Raises: ValueError naming the first of the wanted columns that is not known."""
    if absent := [name for name in wanted if name not in known]:
        raise ValueError(f"{path}: no column {absent[0]!r}; found: {several(known)} (set data.columns)")


def _refuse_patterns(path: Path, names: Sequence[str]) -> None:
    """Raises: ValueError for a name that polars takes for a pattern of names."""
    if "*" in names:
        raise ValueError(f"{path}: the column '*' is called as all of them together: rename it")
    if odd := [name for name in names if name.startswith("^") and name.endswith("$")]:
        raise ValueError(
            f"{path}: the column {odd[0]!r} begins with ^ and ends with $, which stands for a pattern: rename it"
        )


def _schema(path: Path) -> dict[str, Any]:
    try:
        return dict(paths.scan_parquet(path).collect_schema())
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(_damaged(path, error)) from None


def _collect(path: Path, wanted: Sequence[str] | None) -> pl.DataFrame:
    scan = paths.scan_parquet(path)
    try:
        return (scan if wanted is None else scan.select(wanted)).collect(engine="streaming")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(_damaged(path, error)) from None


def _damaged(path: Path, error: Exception) -> str:
    if twice := re.search(r"with name '(.*)' has more than one occurrence", str(error)):
        return f"{path}: the column {twice[1]!r} stands twice in it; write the file again with each name once"
    return f"{path} is damaged, or no Parquet file: {str(error).strip().splitlines()[0]}; fetch the file again"


def _check_ids(path: Path, ids: Sequence[str]) -> None:
    """Refuse columns whose type holds no ids: lists, objects, truth values, dates."""
    for name, kind in _schema(path).items():
        if name in ids and (kind.is_nested() or kind.is_temporal() or kind == pl.Boolean):
            what = "lists" if isinstance(kind, pl.List | pl.Array) else "objects" if kind.is_nested() else str(kind)
            more = "; write one row for each item of a list, or use data.source=sequences" if what == "lists" else ""
            raise ValueError(f"{path}: column {name!r} holds {what}; an id is a text or a whole number{more}")


def _without_bytes(table: pl.DataFrame, path: Path, key: str) -> pl.DataFrame:
    for name, kind in table.schema.items():
        if kind == pl.Binary and _is_text(table[name]):
            continue  # older writers do not mark their texts as texts
        if name == key and kind == pl.Binary:
            raise ValueError(
                f"{path}: column {name!r} holds bytes, which are no text; an id is a text or a whole number: write it so"
            )
        if "Binary" in str(kind):
            log(f"{path}: column {name!r} holds bytes, which are no text: left out")
            table = table.drop(name)
    return table


def _is_text(column: pl.Series) -> bool:
    try:
        column.cast(pl.String)
    except pl.exceptions.PolarsError:
        return False
    return True


def _rows(table: pl.DataFrame) -> pl.Series:
    return pl.int_range(1, table.height + 1, dtype=pl.UInt32, eager=True).alias("line")
