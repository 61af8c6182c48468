"""Text files of records, plain or packed, streamed in blocks; every error names the file and the line.

A block is some 32 MiB of whole lines, so memory stays bounded whatever the size of the file.
"""

import ast
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from distrec.data.files import json_text
from distrec.data.files.text import LONGEST, Text, odd_row, undecodable
from distrec.runtime import brief, several

BLOCK = 32 << 20
_NO_ID = r"^[\[{]|^true$|^false$|^-?\d+\.\d+$|\x00"  # what may have been no text and no whole number
_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair


def blocks(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, bytes]]:
    """(number of its first line, whole lines as UTF-8) for each block of the file.

    Raises: ValueError for a damaged packing, a line over 16 MiB, or bytes that are not `encoding`.
    """
    line, rest = 1, b""
    with Text(path, encoding) as text:
        while True:
            fresh = text.read(BLOCK)
            cut = fresh.rfind(b"\n") + 1
            block, rest = (rest + fresh[:cut], fresh[cut:]) if cut else (b"", rest + fresh)
            if not fresh:
                block, rest = rest, b""
            longest = max(len(rest), _longest(block))
            if longest > LONGEST:
                raise ValueError(
                    f"{path}, line {_line_over(block + rest, line)}: longer than {LONGEST >> 20} MiB; is this a file of one record a line?"
                )
            if block:
                yield line, _checked(block, path, line)
                line += block.count(b"\n")
            if not fresh:
                return


def read_delimited(
    path: Path,
    names: Sequence[str],
    separator: str,
    *,
    encoding: str = "utf-8",
    header: bool = False,
    filled: Sequence[str] = (),
) -> pl.DataFrame:
    """The first columns of a file of delimited text, each as String, plus `line`.

    With `header`, `names` are looked up in the first line; without, they name the columns from the left.

    Raises: ValueError naming file and line for a missing or doubled column, a row of too few or too many cells, and an
    empty cell of a `filled` column.
    """
    frames, mark = [], separator
    if len(separator) > 1:
        mark = "\x01"  # polars separates at one byte
    columns: Sequence[str] = names
    for first, block in blocks(path, encoding):
        if header and first == 1:
            head, _, block = block.partition(b"\n")
            columns = head.decode().strip("\r\n\ufeff").split(separator)
            first = 2
            if absent := [name for name in names if name not in columns]:
                raise ValueError(f"{path}, line 1: no column {absent[0]!r}; found: {several(columns)}")
            if twice := [name for name in names if columns.count(name) > 1]:
                raise ValueError(f"{path}, line 1: the header has {twice[0]!r} twice; rename the other")
        if not block.strip():
            continue
        least = max(columns.index(name) for name in names) + 1
        if odd := odd_row(block, separator, least, len(columns) if header else None):
            row, what = odd
            raise ValueError(f"{path}, line {first + row}: {what}; mend the line: {separator!r} separates its cells")
        if len(separator) > 1:
            block = block.replace(separator.encode(), mark.encode())
        try:
            frame = pl.read_csv(
                block.replace(b"\r\n", b"\n"),
                separator=mark,
                has_header=False,
                infer_schema=False,
                quote_char=None,
                glob=False,
            )
        except pl.exceptions.PolarsError as error:
            raise ValueError(f"{path}, from line {first}: {_first(error)}") from None
        frame = frame.rename(dict(zip(frame.columns, columns, strict=False)))
        if absent := [name for name in names if name not in frame.columns]:
            raise ValueError(
                f"{path}, line {first}: no column {absent[0]!r} (only {len(frame.columns)} columns found); is the separator {separator!r}?"
            )
        frame = frame.select(*names).with_row_index("line", offset=first)
        frames.append(frame)
    if not frames:
        raise ValueError(f"{path}: the file is empty")
    table = pl.concat(frames, rechunk=False)
    # polars keeps a blank line as a row of nulls, so rows and lines agree
    blank = pl.all_horizontal(pl.col(name).is_null() for name in names)
    table = table.filter(~blank)
    for name in filled:
        require(table, name, pl.col(name).is_null() | (pl.col(name) == ""), path, "is empty")
    return table


def read_json_lines(
    path: Path,
    schema: Mapping[str, Any],
    filled: Sequence[str] = (),
    *,
    encoding: str = "utf-8",
    ids: Sequence[str] = (),
) -> pl.DataFrame:
    """The named fields of a file of JSON objects, one a line, plus `line`; absent fields are null.

    Raises: ValueError naming file and line for what is no object, a missing field of `filled`, and a field of `filled`
    or `ids` that is neither a text nor a whole number.
    """
    frames = []
    for first, block in json_blocks(path, encoding):
        frame = parsed(path, first, block, schema).with_row_index("line", offset=first)
        for name in dict.fromkeys([*filled, *ids]):
            check_ids(path, first, block, frame[name])
        texts = [name for name in schema if name not in (*filled, *ids)]
        frames.append(frame.with_columns(json_text.exact(block, frame[name]) for name in texts))
    table = pl.concat(frames, rechunk=False)
    for name in filled:
        require(table, name, pl.col(name).is_null(), path, "is missing")
    return table


def read_literal_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, record) of a file of Python or JSON dictionaries, one a line (Amazon 2014 metadata).

    Literals only: `ast.literal_eval` runs no code.
    """
    for first, block in blocks(path):
        for offset, text in enumerate(block.splitlines()):
            record = literal(text)
            if not isinstance(record, dict):
                raise ValueError(
                    f"{path}, line {first + offset}: neither a Python literal nor a JSON object: {text[:60].decode(errors='replace')!r}{json_text.advice(text)}"
                )
            yield first + offset, record


def require(table: pl.DataFrame, name: str, wrong: pl.Expr, path: Path, what: str) -> None:
    """Raise naming the first line in which `wrong` holds for column `name`."""
    rows = table.lazy().select(wrong.fill_null(False).arg_true()).collect().to_series()
    if len(rows):
        more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        value = brief(table[name][rows[0]])
        raise ValueError(f"{place(table, rows[0], path)}: {name} {value} {what}{more}")


def place(table: pl.DataFrame, row: int, path: Path) -> str:
    """The file and line of a row: `line` beside it says it, `part` where there are several files; else rows are counted.

    An attribute of items may be called line or part: those are texts.
    """
    kinds = table.schema
    file = Path(table["part"][row]) if isinstance(kinds.get("part"), pl.Enum) else path
    has_line = kinds.get("line", pl.String()).is_integer()
    return f"{file}, line {table['line'][row]}" if has_line else f"{file}, row {row + 1}"


def json_blocks(path: Path, encoding: str) -> Iterator[tuple[int, bytes]]:
    """Blocks of JSON lines.   Raises: ValueError for a file without any, and for a blank line that others follow."""
    blank, is_empty = 0, True
    for first, block in blocks(path, encoding):
        body = block.rstrip()
        if body and (blank or _blank_line(body)):
            line = blank or first + _blank_line(body) - 1
            raise ValueError(f"{path}, line {line}: a blank line where a JSON object should stand; remove it")
        if body:
            is_empty = False
            yield first, body
        if not blank and block.count(b"\n", len(body)) > bool(body):
            blank = first + body.count(b"\n") + bool(body)
    if is_empty:
        raise ValueError(f"{path}: the file is empty")


def parsed(path: Path, first: int, block: bytes, schema: Mapping[str, Any]) -> pl.DataFrame:
    try:
        frame = pl.read_ndjson(io.BytesIO(block), schema=dict(schema))
    except pl.exceptions.PolarsError as error:
        raise ValueError(_bad_line(path, first, block) or f"{path}, from line {first}: {_first(error)}") from None
    if frame.height != block.count(b"\n") + 1:
        raise ValueError(_bad_line(path, first, block) or f"{path}, from line {first}: not one JSON object a line")
    if found := json_text.doubled(block, frame):
        row, what = found
        raise ValueError(f"{path}, line {first + row}: {what}; mend the line")
    return frame


def check_ids(path: Path, first: int, block: bytes, column: pl.Series) -> None:
    """Refuse what polars turns into text although it is none: lists, objects, truth values, fractions."""
    odd = (column.str.contains(_NO_ID) | json_text.long_floats(block, column)).arg_true()
    texts = block.split(b"\n") if len(odd) else []
    for row in odd:
        value = json.loads(texts[row])[column.name]
        if isinstance(value, int) and not isinstance(value, bool):
            continue
        if isinstance(value, str) and "\0" not in value and not _HALF.search(value):
            continue
        what = {list: "a list", dict: "an object", bool: "a truth value", float: "a float"}.get(type(value))
        what = "a fraction" if isinstance(value, float) and value % 1 else what
        more = "; write one row for each item of a list, or use data.source=sequences" if what == "a list" else ""
        more = "; write all of its digits" if what == "a float" else more
        key = next(iter(value), "") if isinstance(value, dict) else ""
        more = f"; write the value of {key!r} alone" if key.startswith("$") else more
        if len(column) == 1 and key == "0":
            more = "; the file is one object of columns: write one object a row (pandas: orient='records', lines=True)"
        raise ValueError(
            f"{path}, line {first + row}: {column.name} {json.dumps(value)[:60]} is {what or 'broken text'}; an id is a text "
            f"or a whole number{more}"
        )


def literal(text: bytes) -> Any:
    for parse in (
        lambda raw: json.loads(raw, parse_constant=lambda _: None),
        lambda raw: ast.literal_eval(raw.decode()),
    ):
        try:
            return parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return None


def _bad_line(path: Path, first: int, block: bytes) -> str | None:
    for offset, text in enumerate(block.split(b"\n")):
        try:
            if isinstance(json_text.parse(text), dict):
                continue
            what = "not a JSON object"
        except ValueError as error:
            what = f"malformed JSON ({error})"
        shown = repr(text[:60].decode(errors="replace"))
        return f"{path}, line {first + offset}: {what}: {shown}{json_text.advice(text)}"
    return None


def _checked(block: bytes, path: Path, first: int) -> bytes:
    try:
        block.decode()
    except UnicodeDecodeError as error:
        line = first + block[: error.start].count(b"\n")
        raise ValueError(undecodable(path, line, block[error.start : error.start + 1], "utf-8")) from None
    return block


def _longest(block: bytes) -> int:
    """A bound on the longest line, cheap where all lines are short."""
    if len(block) <= LONGEST:
        return len(block)
    return max(map(len, block.split(b"\n")))


def _line_over(block: bytes, first: int) -> int:
    return first + next(i for i, text in enumerate(block.split(b"\n")) if len(text) > LONGEST)


def _blank_line(block: bytes) -> int:
    """1-based number of the first blank line, 0 for none."""
    if block.startswith(b"\n"):
        return 1
    place = block.find(b"\n\n") + 1
    return block.count(b"\n", 0, place) + 1 if place else 0


def _shown(text: bytes) -> str:
    return repr(text[:60].decode(errors="replace"))


def _first(error: Exception) -> str:
    return str(error).splitlines()[0]
