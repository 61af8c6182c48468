"""A text file of any packing and encoding as a stream of UTF-8 bytes that knows which line it is in."""

import codecs
import io
import re
from functools import cache
from pathlib import Path

import polars as pl
import pyarrow as pa
from tqdm import tqdm

from distrec.runtime import log

LONGEST = 16 << 20  # bytes in one line
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_PACKED_NOTHING = 64  # bytes that no packing of nothing reaches
_NO_TEXT = {b"PK\x03\x04": "a zip archive or an Excel sheet", b"PAR1": "a Parquet file", b"BZh": "a bzip2 archive"}
_MARKS = [  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]


# encodings in which (nearly) every byte is a character, so that a wrong choice is no error
_ANY_BYTE = ("iso8859-1", "iso8859-15", "cp1252")


class Text(io.RawIOBase):
    """UTF-8 bytes, unpacked and decoded, without a byte-order mark.   `lines`, `has_quotes`: of what has passed.

    Bytes of UTF-8 itself pass unchecked, since every parser checks the cells that it reads.

    Raises: ValueError on reading, naming file and line, for a damaged packing, bytes that are not in the `encoding`,
    another encoding's byte-order mark, a NUL byte, and what is no text at all.
    """

    def __init__(self, path: Path, encoding: str = "utf-8"):
        self.has_quotes = False
        self._newlines = self._trailing = 0  # all, and those after the last character
        self._path, self._encoding = path, encoding
        self._is_utf8 = codecs.lookup(encoding).name.startswith("utf-8")
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._takes_any_byte = codecs.lookup(encoding).name in _ANY_BYTE
        self._file = pa.OSFile(str(path))
        start = self._file.read(4)
        self._file.seek(0)
        packing = next((name for magic, name in _PACKED.items() if start.startswith(magic)), None)
        self._stream = pa.CompressedInputStream(self._file, packing) if packing else self._file
        self._packing, self._rest, self._is_at_start = packing, b"", True
        self._bar = tqdm(total=self._file.size(), unit="B", unit_scale=True, desc=path.name, delay=2, leave=False)

    @property
    def lines(self) -> int:
        """The number of the last line that is not blank."""
        return self._newlines - self._trailing + 1

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._bar.close()
            self._stream.close()
            self._file.close()
        super().close()

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        block = self.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, fewer only at the end; what decoding made longer is kept for the next call."""
        while not self._rest:
            fresh = self._unpack(size)
            if self._is_at_start:
                fresh, self._is_at_start = self._without_mark(fresh), False
            self._rest = fresh if self._is_utf8 else self._decode(fresh)
            if self._newlines == 0 and not self._is_utf8:  # utf-16-le keeps the mark that utf-16 takes off
                self._rest = self._rest.removeprefix(codecs.BOM_UTF8)
            if not fresh:
                break
        block = self._rest if size < 0 else self._rest[:size]
        self._rest = self._rest[len(block) :]
        if (place := block.find(b"\0")) >= 0:
            raise ValueError(
                f"{self._path}, line {self._line(block[:place])}: a NUL byte; if the file is UTF-16 set "
                f"data.encoding=utf-16-{'le' if place % 2 else 'be'}, else it is damaged: fetch it again"
            )
        body = block.rstrip(b"\r\n")
        self._trailing = block.count(b"\n", len(body)) + (0 if body else self._trailing)
        self._newlines += block.count(b"\n")
        self.has_quotes = self.has_quotes or b'"' in block
        return block

    def _unpack(self, size: int) -> bytes:
        try:
            block = self._stream.read(size) if size >= 0 else self._stream.read()
        except OSError as error:
            raise ValueError(
                f"{self._path}: the {self._packing} stream is cut off or damaged ({error}); fetch the file again"
            ) from None
        self._bar.update(self._file.tell() - self._bar.n)
        return block

    def _without_mark(self, block: bytes) -> bytes:
        for magic, name in _NO_TEXT.items():
            if block.startswith(magic):
                raise ValueError(
                    f"{self._path}: this is {name} by its first bytes, not text; name or unpack it rightly"
                )
        other = next((name for mark, name in _MARKS if block.startswith(mark)), None)
        if other and not codecs.lookup(self._encoding).name.startswith(other):
            raise ValueError(f"{self._path}, line 1: the byte-order mark of {other}; set data.encoding={other}")
        return block.removeprefix(codecs.BOM_UTF8)

    def _decode(self, block: bytes) -> bytes:
        if self._takes_any_byte and not block.isascii():
            _tell_mistaken(self._path, self._encoding, block)
            self._takes_any_byte = False
        try:
            return self._decoder.decode(block, final=not block).encode()
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode(self._encoding, "ignore").encode()
            if error.reason in ("truncated data", "unexpected end of data"):
                raise ValueError(
                    f"{self._path}, line {self._line(before)}: the last character is cut off; fetch the file again"
                ) from None
            byte = error.object[error.start : error.start + 1]
            raise ValueError(undecodable(self._path, self._line(before), byte, self._encoding)) from None
        except UnicodeError:
            name = self._encoding
            raise ValueError(
                f"{self._path}: no byte-order mark, which data.encoding={name} needs; set data.encoding={name}-le (or -be)"
            ) from None

    def _line(self, before: bytes) -> int:
        return self._newlines + before.count(b"\n") + 1


def _tell_mistaken(path: Path, encoding: str, block: bytes) -> None:
    """Tell, once a file, of bytes that are rather those of UTF-8, or of Windows' quotes and dashes, which latin-1 lacks."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(block)
        other, what = (
            "utf-8",
            f"its bytes beyond ASCII are UTF-8 throughout, and two or more wrong letters each in {encoding}",
        )
    except UnicodeDecodeError:
        if codecs.lookup(encoding).name != "iso8859-1" or not re.search(rb"[\x80-\x9f]", block):
            return
        other, what = (
            "cp1252",
            f"it has bytes that are control characters in {encoding}, and quotes and dashes in cp1252",
        )
    _tell_once(f"{path}: {what}: set data.encoding={other} (data.items_encoding, if it is the item table)")


@cache
def _tell_once(message: str) -> None:
    log(message)  # a file is opened several times


def is_empty(path: Path) -> bool:
    """Whether a file of text holds nothing, packed or not."""
    if path.stat().st_size >= _PACKED_NOTHING:
        return False
    with Text(path) as text:
        return not text._unpack(1)


def odd_row(block: bytes, separator: str, least: int, most: int | None) -> tuple[int, str] | None:
    """Return the first row of plain delimited text with fewer or more cells than it may have, and what is wrong with it.

    `most`: None for as many as most rows have, if that is `least` or more.
    """
    body = block.rstrip(b"\r\n")
    n, marks = body.count(b"\n") + 1, body.count(separator.encode())
    width = body.split(b"\n", 1)[0].count(separator.encode()) + 1
    if marks == n * (width - 1) and least <= width <= (most or width):
        return None  # the usual case: as many in each row
    rows = pl.Series([body]).cast(pl.String).str.split("\n").explode().str.strip_chars_end("\r")
    cells = rows.str.count_matches(separator, literal=True) + 1
    usual = int(cells.filter(rows != "").mode().max())  # pyright: ignore[reportArgumentType]  (a number)
    if usual < least:
        return None  # another separator, which is told where the columns are looked up
    limit = usual if most is None else most
    odd = ((rows != "") & ~cells.is_between(least, limit)).arg_true()
    if not len(odd):
        return None
    row = int(odd[0])
    expected = f"most lines have {usual}" if most is None else f"the header has {most}"
    return row, f"{cells[row]} cells, but {expected}: {rows[row][:80]!r}"


def undecodable(path: Path, line: int, byte: bytes, encoding: str) -> str:
    """The message for a byte that is not in an encoding."""
    return (
        f"{path}, line {line}: byte {byte!r} is not {encoding}; set data.encoding (latin-1, cp1252, utf-16, …), "
        "or convert the file (iconv -t utf-8)"
    )


def check_encoding(name: str) -> None:
    """Raises: ValueError for a name that Python does not know as an encoding of text."""
    try:
        "a".encode(name)
        codecs.getincrementaldecoder(name)
    except (LookupError, UnicodeError, TypeError):
        raise ValueError(
            f"data.encoding={name!r} is not an encoding; examples: utf-8, latin-1, cp1252, utf-16, shift_jis, gb18030"
        ) from None
