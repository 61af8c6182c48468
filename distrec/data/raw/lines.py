"""Text files of records, plain or gzip, streamed in blocks; every error names the file and the line.

A block is some 32 MiB of whole lines, so memory stays bounded whatever the size of the file.
"""

import ast
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

BLOCK = 32 << 20
LONGEST = 16 << 20  # bytes in one line


def blocks(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, bytes]]:
    """(number of its first line, whole lines as UTF-8) for each block of the file.

    Raises: ValueError for a cut-off gzip stream, a line over 16 MiB, or bytes that are not `encoding`.
    """
    line, rest = 1, b""
    with (
        path.open("rb") as raw,
        tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name, delay=2, leave=False) as bar,
    ):
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if zipped else raw
        while True:
            try:
                fresh = stream.read(BLOCK)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise ValueError(
                    f"{path}, after line {line + rest.count(10)}: the gzip stream is cut off or damaged ({error}); fetch the file again"
                ) from None
            bar.update(raw.tell() - bar.n)
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
                yield line, _to_utf8(block, encoding, path, line)
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

    Raises: ValueError naming file and line for a missing column or an empty cell of a `filled` column.
    """
    frames, mark = [], separator
    if len(separator) > 1:
        mark = "\x01"  # polars separates at one byte
    columns: Sequence[str] = names
    for first, block in blocks(path, encoding):
        if len(separator) > 1:
            block = block.replace(separator.encode(), mark.encode())
        if header and first == 1:
            head, _, block = block.partition(b"\n")
            columns = head.decode().strip("\r\n\ufeff").split(mark)
            first = 2
            if absent := [name for name in names if name not in columns]:
                raise ValueError(f"{path}, line 1: no column {absent[0]!r}; found: {', '.join(columns)}")
        if not block.strip():
            continue
        try:
            frame = pl.read_csv(
                block.replace(b"\r\n", b"\n"), separator=mark, has_header=False, infer_schema=False, quote_char=None
            )
        except pl.exceptions.PolarsError as error:
            raise ValueError(f"{path}, from line {first}: {_first(error)}") from None
        frame = frame.rename(dict(zip(frame.columns, columns, strict=False)))
        if absent := [name for name in names if name not in frame.columns]:
            raise ValueError(
                f"{path}, line {first}: no column {absent[0]!r} (only {len(frame.columns)} columns found); is the separator {separator!r}?"
            )
        frames.append(frame.select(*names).with_row_index("line", offset=first))
    if not frames:
        raise ValueError(f"{path}: the file is empty")
    table = pl.concat(frames, rechunk=False)
    # polars keeps a blank line as a row of nulls, so rows and lines agree
    blank = pl.all_horizontal(pl.col(name).is_null() for name in names)
    table = table.filter(~blank)
    for name in filled:
        require(table, name, pl.col(name).is_null() | (pl.col(name) == ""), path, "is empty")
    return table


def read_json_lines(path: Path, schema: Mapping[str, Any], filled: Sequence[str] = ()) -> pl.DataFrame:
    """The named fields of a file of JSON objects, one a line, plus `line`; absent fields are null."""
    frames = []
    for first, block in blocks(path):
        if blank := _blank_line(block):
            raise ValueError(
                f"{path}, line {first + blank - 1}: a blank line where a JSON object should stand; remove it"
            )
        try:
            frame = pl.read_ndjson(io.BytesIO(block), schema=dict(schema))
        except pl.exceptions.PolarsError as error:
            raise ValueError(
                _bad_line(path, first, block, json.loads) or f"{path}, from line {first}: {_first(error)}"
            ) from None
        if frame.height != block.count(b"\n") + (not block.endswith(b"\n")):
            raise ValueError(
                _bad_line(path, first, block, json.loads) or f"{path}, from line {first}: not one JSON object a line"
            )
        frames.append(frame.with_row_index("line", offset=first))
    if not frames:
        raise ValueError(f"{path}: the file is empty")
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
            record = _literal(text)
            if not isinstance(record, dict):
                raise ValueError(
                    f"{path}, line {first + offset}: neither a Python literal nor a JSON object: {text[:60].decode(errors='replace')!r}"
                )
            yield first + offset, record


def require(table: pl.DataFrame, name: str, wrong: pl.Expr, path: Path, what: str) -> None:
    """Raise naming the first line in which `wrong` holds for column `name`."""
    bad = table.lazy().filter(wrong).select("line", name, n=pl.len()).head(1).collect()
    if bad.height:
        line, value, count = bad.row(0)
        more = f" (and {count - 1} more)" if count > 1 else ""
        raise ValueError(f"{path}, line {line}: {name} {value!r} {what}{more}")


def _literal(text: bytes) -> Any:
    for parse in (json.loads, lambda raw: ast.literal_eval(raw.decode())):
        try:
            return parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return None


def _bad_line(path: Path, first: int, block: bytes, parse: Callable[[bytes], Any]) -> str | None:
    for offset, text in enumerate(block.splitlines()):
        try:
            if not isinstance(parse(text), dict):
                return f"{path}, line {first + offset}: not a JSON object: {text[:60].decode(errors='replace')!r}"
        except ValueError as error:
            return f"{path}, line {first + offset}: malformed JSON ({error}): {text[:60].decode(errors='replace')!r}"
    return None


def _to_utf8(block: bytes, encoding: str, path: Path, first: int) -> bytes:
    try:
        text = block.decode(encoding)
    except UnicodeDecodeError as error:
        line = first + block[: error.start].count(b"\n")
        raise ValueError(
            f"{path}, line {line}: byte {block[error.start : error.start + 1]!r} is not {encoding}; convert the file (iconv -t utf-8)"
        ) from None
    return block if encoding == "utf-8" else text.encode()


def _longest(block: bytes) -> int:
    """A bound on the longest line, cheap where all lines are short."""
    if len(block) <= LONGEST:
        return len(block)
    return max(map(len, block.split(b"\n")))


def _line_over(block: bytes, first: int) -> int:
    return first + next(i for i, text in enumerate(block.split(b"\n")) if len(text) > LONGEST)


def _blank_line(block: bytes) -> int:
    """1-based number of the first blank line, 0 for none."""
    at = block.find(b"\n\n") + 1 or (1 if block[:1] == b"\n" else 0)
    return block.count(b"\n", 0, at) + 1 if at else 0


def _shown(text: bytes) -> str:
    return repr(text[:60].decode(errors="replace"))


def _first(error: Exception) -> str:
    return str(error).splitlines()[0]
