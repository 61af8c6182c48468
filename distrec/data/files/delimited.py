"""Delimited text (.csv, .tsv) in one streamed pass; a second one, record by record, only where something is odd.

The fast pass is Arrow's, which wants equally many cells in every row and takes a quote inside an unquoted cell as it
stands.  Files that hold quotes are checked by the `csv` module as well, since Arrow would go on after a quote that
closes too early (`"He" said`) or is never closed.
"""

import csv
import io
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from pyarrow import csv as arrow

from distrec.data.files.text import LONGEST, Text, undecodable
from distrec.runtime import several

_SHOWN = 80  # characters of a row in a message
_UNDECODED = re.compile("[\udc80-\udcff]")  # how Python carries a byte that is not UTF-8


@dataclass(frozen=True)
class Style:
    """How the cells of a text stand in it.   `quoted`: cells may stand in quotes, a quote inside them doubled.

    `skipped`: lines before the header.
    """

    separator: str = ","
    encoding: str = "utf-8"
    quoted: bool = True
    skipped: int = 0


def read(
    path: Path, wanted: Sequence[str] | None, style: Style, needed: Sequence[str] = ()
) -> tuple[pl.DataFrame, pl.Series]:
    """(the wanted columns, as String with null for an empty cell; the line in which each row begins).

    If `wanted` is None they are all, of which `needed` must be there, without those that have neither a name nor a value.
    Blank lines are no rows.  A first line `sep=;` states the separator, as Excel has it.

    Raises: ValueError naming file and line, for a missing or doubled column, a row of too few or too many cells, a
    quote that is not closed or closes too early, bytes of another encoding, a NUL byte, and a cut-off packing.
    """
    style = _stated(path, style)
    columns, has_rows = _header(path, style)
    _check_header(path, columns, needed if wanted is None else wanted, style)
    names = list(wanted) if wanted is not None else _named(path, columns, style)
    _check_header(path, columns, names, style)
    if not has_rows:
        return pl.DataFrame(schema=dict.fromkeys(names, pl.String)), pl.Series("line", [], pl.UInt32)
    text = Text(path, style.encoding)
    try:
        with arrow.open_csv(text, *_options(names, style)) as reader:
            frames = [pl.DataFrame(batch) for batch in reader]
    except pa.ArrowInvalid as error:
        first = str(error).splitlines()[0]
        raise ValueError(_fault(path, style, len(columns)) or f"{path}: {first}") from None
    finally:
        text.close()
    table = pl.concat(frames, rechunk=False)
    if style.quoted and text.has_quotes:
        _check_quotes(path, style, len(columns))
    first = style.skipped + 2
    if text.lines == table.height + first - 1:
        line = pl.int_range(first, table.height + first, dtype=pl.UInt32, eager=True).alias("line")
    else:
        line = pl.Series("line", np.fromiter((n for n, _ in islice(_records(path, style), 1, None)), np.uint32))
    _check_rows(path, table, line)
    return table, line


def _check_rows(path: Path, table: pl.DataFrame, line: pl.Series) -> None:
    """Raises: ValueError naming the line in which the header stands again, as where files were put behind each other."""
    if table.width > 1 and len(again := line.filter(table.select(_is_header(table)).to_series())):
        raise ValueError(f"{path}, line {again[0]}: the header again ({', '.join(table.columns)}): remove that line")


def _is_header(table: pl.DataFrame) -> pl.Expr:
    """A mark of the second file's beginning may stand before its first name."""
    names = [(pl.col(name), name) for name in table.columns]
    return pl.all_horizontal(((col == name) | (col == f"\ufeff{name}")).fill_null(False) for col, name in names).alias(
        ""
    )


def _check_header(path: Path, header: Sequence[str], names: Sequence[str], style: Style) -> None:
    """Raises: ValueError for a name that is missing, or stands twice."""
    place = f"{path}, line {style.skipped + 1}"
    if absent := [name for name in names if name not in header]:
        raise ValueError(f"{place}: no column {absent[0]!r}; found: {several(header)} ({_remedy(path, header, style)})")
    if twice := [name for name in names if header.count(name) > 1]:
        raise ValueError(
            f"{place}: the header has {twice[0]!r} {header.count(twice[0])} times, so that it does not say which "
            "one is meant; rename the others"
        )


def _named(path: Path, header: Sequence[str], style: Style) -> list[str]:
    """The columns without those that have neither a name nor a value, as a sheet has beside its table.

    Raises: ValueError for a value in one of several columns without a name.
    """
    nameless = [place for place, name in enumerate(header) if not name]
    rows = islice(_records(path, style), 1, None) if nameless else iter(())
    line = next(
        (line for line, row in rows if any(row[place : place + 1] not in ([], [""]) for place in nameless)), None
    )
    if line and len(nameless) > 1:
        raise ValueError(
            f"{path}, line {line}: a value in a column without a name, of which the header has {len(nameless)}; name it there"
        )
    return [name for name in header if name or line]


def header(path: Path, style: Style) -> list[str]:
    """The names in the first line.   Raises: ValueError for an empty file."""
    return _header(path, _stated(path, style))[0]


def _stated(path: Path, style: Style) -> Style:
    """The style with the separator that a first line `sep=;` states."""
    with _lines(Text(path, style.encoding)) as lines:
        stated = re.fullmatch(r'"?sep=([\t -!#-~])"?[\r\n]*', lines.readline(16))
    return replace(style, separator=stated[1], skipped=1) if stated else style


def _remedy(path: Path, header: Sequence[str], style: Style) -> str:
    other = next((mark for mark in (";", "\t", "|", ",") if mark in header[0]), None)
    if len(header) == 1 and other and other != style.separator:
        name = "name it .csv and " if path.suffix.lower() == ".tsv" else ""
        return f"the cells are separated by {other!r}, it seems: {name}set data.separator={other!r}"
    if blanks := [name for name in header if name != name.strip()]:
        return f"{blanks[0]!r} has blanks around it; set data.columns, or remove them"
    return "set data.columns; the first line holds the names"


def _header(path: Path, style: Style) -> tuple[list[str], bool]:
    """(the names in the first line, whether rows follow)."""
    first = list(islice(_records(path, style), 2))
    if not first:
        raise ValueError(f"{path}: the file is empty; its first line holds the names of the columns")
    if fault := _undecoded(path, *first[0]):
        raise ValueError(fault)
    return first[0][1], len(first) > 1


def _options(names: Sequence[str], style: Style) -> tuple[arrow.ReadOptions, arrow.ParseOptions, arrow.ConvertOptions]:
    return (
        arrow.ReadOptions(block_size=LONGEST, skip_rows=style.skipped),
        arrow.ParseOptions(
            delimiter=style.separator, quote_char='"' if style.quoted else False, newlines_in_values=style.quoted
        ),
        arrow.ConvertOptions(
            include_columns=list(names),
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        ),
    )


def _reader(lines: io.TextIOBase, style: Style) -> Any:
    csv.field_size_limit(LONGEST)
    quoting = csv.QUOTE_MINIMAL if style.quoted else csv.QUOTE_NONE
    return csv.reader(lines, delimiter=style.separator, quoting=quoting, strict=True)


def _lines(text: Text, errors: str = "surrogateescape") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedReader(text, 1 << 20), "utf-8", errors, newline="")


def _records(path: Path, style: Style) -> Iterator[tuple[int, list[str]]]:
    """(the line in which it begins, its cells) of each row.   Raises: ValueError for quotes that do not match."""
    with _lines(Text(path, style.encoding)) as lines:
        for _ in range(style.skipped):
            lines.readline()
        reader = _reader(lines, style)
        begin = style.skipped + 1
        try:
            for cells in reader:
                if cells:
                    yield begin, cells
                begin = style.skipped + reader.line_num + 1
        except csv.Error as error:
            raise ValueError(_quote_fault(path, begin, style.skipped + reader.line_num, error)) from None


def _quote_fault(path: Path, begin: int, line: int, error: csv.Error) -> str:
    remedy = "double a quote inside a quoted cell, or set data.quoted=false if quotes are plain characters"
    if "expected after" not in str(error):
        return f"{path}, line {begin}: a quote opens a cell that is never closed, or longer than {LONGEST >> 20} MiB; {remedy}"
    if line == begin:
        return f"{path}, line {line}: a quote closes a cell that goes on behind it; {remedy}"
    return f"{path}, line {begin}: a quoted cell begins, and in line {line} a quote closes it in mid-cell; {remedy}"


def _check_quotes(path: Path, style: Style, cells: int) -> None:
    """Raises: ValueError naming the line, where the quotes of a file do not match."""
    with _lines(Text(path, style.encoding)) as lines:
        try:
            deque(_reader(lines, style), maxlen=0)
            return
        except csv.Error:
            pass
    raise ValueError(_fault(path, style, cells))


def _fault(path: Path, style: Style, cells: int) -> str | None:
    """The first thing that is wrong with a file, and its line."""
    try:
        for line, row in _records(path, style):
            if fault := _undecoded(path, line, row):
                return fault
            shown = style.separator.join(row)
            if len(row) != cells:
                return (
                    f"{path}, line {line}: {len(row)} cells, but the header has {cells}: {shown[:_SHOWN]!r}; mend the "
                    f"line, or put a cell that holds {style.separator!r} in quotes"
                )
            if len(shown) > LONGEST // 4 and len(shown.encode()) >= LONGEST:
                return f"{path}, line {line}: longer than {LONGEST >> 20} MiB; is a quote left open?"
    except ValueError as error:
        return str(error)
    return None


def _undecoded(path: Path, line: int, row: Sequence[str]) -> str | None:
    if found := _UNDECODED.search("\n".join(row)):
        return undecodable(path, line, bytes([ord(found[0]) - 0xDC00]), "utf-8")
    return None
