"""What happens to files in the wild: bytes, lines and cells that were lost, doubled, swapped or replaced."""

import random
from dataclasses import replace

from fuzzing.logs import Log

CELLS = (
    b"", b" ", b"nan", b"NaN", b"None", b"NULL", b"null", b"\\N", b"inf", b"-1", b"0", b"1e400", b"99999999999999999999", b"1.5", b"007",
    b"2024-13-45", b"01/02/2024", b"20240131", b"12:30", b"=1+1", b'"', b'""', b'"a', b"a\tb", b"a\x00b", b"\xff\xfe", b"\xc3", b"[1]", b'{"a": 1}',
    b"true", "٣".encode(), "１".encode(), b"a" * 70_000, b"1,2", b"#", b"<b>x</b>", b"1_000", b"0x10", b"1e9", b"+5", b"-0", b"\xef\xbb\xbf",
)  # fmt: skip
SEPARATORS = b',\t|: "{}'


def _flip(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _insert(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data) + 1)
    return (
        data[:place]
        + rng.choice([b"\x00", b"\n", b"\r", b'"', b"\xef\xbb\xbf", b"\x1a", b"\xff", b",", b"\t", b" "])
        + data[place:]
    )


def _double_line(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    return b"".join([*lines[: place + 1], *lines[place:]])


def _lose_line(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    del lines[rng.randrange(len(lines))]
    return b"".join(lines)


def _cell(data: bytes, rng: random.Random) -> bytes:
    """Another cell in the place of one: what stands between two separators of a line."""
    lines = data.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    line = lines[place]
    ends = [-1, *(i for i, byte in enumerate(line) if byte in SEPARATORS), len(line.rstrip(b"\r\n"))]
    n = rng.randrange(len(ends) - 1)
    lines[place] = line[: ends[n] + 1] + rng.choice(CELLS) + line[ends[n + 1] :]
    return b"".join(lines)


def _encode(data: bytes, rng: random.Random) -> bytes:
    return data.decode("utf-8", "replace").encode(
        rng.choice(["utf-16", "utf-16-le", "latin-1", "cp1252", "utf-32"]), "replace"
    )


def _swap_lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    rng.shuffle(lines)
    return b"".join(lines)


def _nothing(data: bytes, rng: random.Random) -> bytes:
    return rng.choice(
        [
            b"",
            b"\n",
            b"\n\n\n",
            b"\xef\xbb\xbf",
            b" ",
            b"\x1f\x8b",
            b"PAR1",
            b"(\xb5/\xfd",
            data.splitlines()[0] if data.splitlines() else b"",
        ]
    )


DAMAGES = {
    "a byte": _flip, "cut off": _cut, "inserted": _insert, "a line twice": _double_line, "a line lost": _lose_line, "a cell": _cell,
    "another cell": _cell, "encoding": _encode, "lines shuffled": _swap_lines, "nothing": _nothing,
}  # fmt: skip


def damaged(log: Log, rng: random.Random) -> Log:
    """The same log after one mishap, to the log itself or to a file beside it; nobody can say what it holds then."""
    what = rng.choice(list(DAMAGES))
    if log.more and rng.random() < 0.3:
        name = rng.choice(list(log.more))
        more = {**log.more, name: DAMAGES[what](log.more[name], rng)}
        return replace(log, more=more, what=f"{log.what}: {what} in {name}")  # the interactions are what they were
    return replace(log, content=DAMAGES[what](log.content, rng), truth=None, what=f"{log.what}: {what}")
