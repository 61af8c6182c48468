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
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from pyarrow import csv as arrow

from distrec.data.files.text import LONGEST, Text, undecodable

_SHOWN = 80  # characters of a row in a message
_UNDECODED = re.compile("[\udc80-\udcff]")  # how Python carries a byte that is not UTF-8


@dataclass(frozen=True)
class Style:
    """How the cells of a text stand in it.   `quoted`: cells may stand in quotes, a quote inside them doubled."""

    separator: str = ","
    encoding: str = "utf-8"
    quoted: bool = True


def read(path: Path, wanted: Sequence[str] | None, style: Style) -> tuple[pl.DataFrame, pl.Series]:
    """(the wanted columns, all if None, as String with null for an empty cell; the line in which each row begins).

    Blank lines are no rows.

    Raises: ValueError naming file and line, for a missing or doubled column, a row of too few or too many cells, a
    quote that is not closed or closes too early, bytes of another encoding, a NUL byte, and a cut-off packing.
    """
    columns, has_rows = _header(path, style)
    names = _check_header(path, columns, wanted, style)
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
    if text.lines == table.height + 1:
        line = pl.int_range(2, table.height + 2, dtype=pl.UInt32, eager=True).alias("line")
    else:
        line = pl.Series("line", np.fromiter((n for n, _ in islice(_records(path, style), 1, None)), np.uint32))
    _check_rows(path, table, line)
    return table, line


def _check_rows(path: Path, table: pl.DataFrame, line: pl.Series) -> None:
    """Raises: ValueError naming the line in which the header stands again, as where files were put behind each other."""
    if table.width > 1 and len(again := line.filter(table.select(_is_header(table)).to_series())):
        raise ValueError(f"{path}, line {again[0]}: the header again ({', '.join(table.columns)}): remove that line")


def _is_header(table: pl.DataFrame) -> pl.Expr:
    return pl.all_horizontal(pl.col(name).eq_missing(pl.lit(name)) for name in table.columns).alias("")


def _check_header(path: Path, header: Sequence[str], wanted: Sequence[str] | None, style: Style) -> list[str]:
    """The names that will be read.   Raises: ValueError for one that is missing, or stands twice."""
    names = list(header if wanted is None else wanted)
    if absent := [name for name in names if name not in header]:
        raise ValueError(
            f"{path}, line 1: no column {absent[0]!r}; found: {', '.join(header)} ({_remedy(path, header, style)})"
        )
    if twice := [name for name in names if header.count(name) > 1]:
        raise ValueError(
            f"{path}, line 1: the header has {twice[0]!r} {header.count(twice[0])} times, so that it does not say which "
            "one is meant; rename the others"
        )
    return names


def header(path: Path, style: Style) -> list[str]:
    """The names in the first line.   Raises: ValueError for an empty file."""
    return _header(path, style)[0]


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
    if fault := _undecoded(path, 1, first[0][1]):
        raise ValueError(fault)
    return first[0][1], len(first) > 1


def _options(names: Sequence[str], style: Style) -> tuple[arrow.ReadOptions, arrow.ParseOptions, arrow.ConvertOptions]:
    return (
        arrow.ReadOptions(block_size=LONGEST),
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
        reader = _reader(lines, style)
        begin = 1
        try:
            for cells in reader:
                if cells:
                    yield begin, cells
                begin = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(_quote_fault(path, begin, reader.line_num, error)) from None


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
