"""Logs of the wild with a known truth: rows that are drawn, the file that holds them, the words that read it.

A row is (user, item, exact instant); an instant is a whole number of nanoseconds since 1970.  The truth of a file is each
user's items in the order of exact instants, equal ones in the file's order.
"""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

Row = tuple[str, str, int]
SECOND = 10**9
NAMES = (
    "7", "007", "a b", "ü", "名", "x,y", 'q"r', "it's", "#9", "a:b", "[1]", "*", "1e3", "-5", "0x1F", "true", "a|b", "ab" * 200,
    "&amp;", "2024-01-01", "NaNcy", "None of it", "é", "e\u0301", "\u202eabc", "12345678901234567890", "a;b", "~", "%20",
)  # fmt: skip


@dataclass
class Log:
    """A file's content, its name, the words that say how to read it, and what it holds (None: nobody can say)."""

    name: str
    content: bytes
    words: list[str]
    truth: dict[str, list[str]] | None
    what: str
    more: dict[str, bytes] = field(default_factory=dict)


def truth(rows: list[Row]) -> dict[str, list[str]]:
    """Each user's items, oldest first."""
    users: dict[str, list[tuple[int, int, str]]] = {}
    for place, (user, item, instant) in enumerate(rows):
        users.setdefault(user, []).append((instant, place, item))
    return {user: [item for _, _, item in sorted(events, key=lambda e: e[:2])] for user, events in users.items()}


def draw_rows(rng: random.Random) -> list[Row]:
    """Some users with some items each; instants that differ by nanoseconds to years, some of them equal."""
    users = rng.sample(NAMES, 3) + [f"u{i}" for i in range(rng.randrange(1, 5))]
    items = rng.sample(NAMES, 6) + [f"i{i}" for i in range(6)]
    step = rng.choice([1, 1000, 10**6, SECOND, 3600 * SECOND])
    base = rng.randrange(1_000_000_000, 1_700_000_000) * SECOND
    rows = [
        (user, rng.choice(items), base + step * rng.randrange(40)) for user in users for _ in range(rng.randrange(3, 8))
    ]
    rng.shuffle(rows)
    return rows


# --- times as a file may say them: (name, instant → what is written, resolution in ns, words) ---------------------------


def _iso(instant: int, digits: int, offset: int = 0, suffix: str = "Z", between: str = "T") -> str:
    whole, part = divmod(instant, SECOND)
    zone = timezone(timedelta(minutes=offset))
    text = datetime.fromtimestamp(whole, zone).strftime(f"%Y-%m-%d{between}%H:%M:%S")
    fraction = f".{part:09d}"[: digits + 1] if digits else ""
    sign, minutes = "-" if offset < 0 else "+", abs(offset)
    return text + fraction + (f"{sign}{minutes // 60:02d}:{minutes % 60:02d}" if suffix == "offset" else suffix)


@dataclass(frozen=True)
class Clock:
    """How a text file writes instants."""

    name: str
    write: Callable[[int, random.Random], str]
    resolution: int = 1
    words: tuple[str, ...] = ()


CLOCKS = (
    Clock("s", lambda t, _: str(t // SECOND), SECOND),
    Clock("ms", lambda t, _: str(t // 10**6), 10**6, ("data.columns.time_unit=ms",)),
    Clock("us", lambda t, _: str(t // 10**3), 10**3, ("data.columns.time_unit=us",)),
    Clock("ns", lambda t, _: str(t), 1, ("data.columns.time_unit=ns",)),
    Clock("s with fraction", lambda t, _: str(Decimal(t // 1000).scaleb(-6)), 1000),
    Clock("ms with fraction", lambda t, _: str(Decimal(t // 1000).scaleb(-3)), 1000, ("data.columns.time_unit=ms",)),
    Clock("iso s", lambda t, _: _iso(t, 0), SECOND),
    Clock("iso ms", lambda t, _: _iso(t, 3), 10**6),
    Clock("iso us, no zone", lambda t, _: _iso(t, 6, suffix=""), 1000),
    Clock("iso ns", lambda t, _: _iso(t, 9), 1),
    Clock("iso blank", lambda t, _: _iso(t, 0, suffix="", between=" "), SECOND),
    Clock("iso zones", lambda t, r: _iso(t, 3, r.choice([0, 60, -300, 330]), "offset"), 10**6),
    Clock("day", lambda t, _: _iso(t, 0)[:10], 86_400 * SECOND),
    Clock("us slashes", lambda t, _: datetime.fromtimestamp(t // SECOND, UTC).strftime("%m/%d/%Y %H:%M:%S"), SECOND,
          ("data.columns.time_format=%m/%d/%Y %H:%M:%S",)),
)  # fmt: skip


def _rounded(rows: list[Row], resolution: int) -> list[Row]:
    return [(user, item, instant // resolution * resolution) for user, item, instant in rows]


def text_log(rng: random.Random) -> Log:
    """A CSV, TSV or JSONL log, in any order of columns, line ends, packing and encoding that the reader promises."""
    clock = rng.choice(CLOCKS)
    rows = _rounded(draw_rows(rng), clock.resolution)
    kind = rng.choice(["csv", "csv", "tsv", "jsonl"])
    columns = ["user", "item", "time", *rng.sample(["note", "line", "raw", "text", "event"], rng.randrange(3))]
    rng.shuffle(columns)
    cells = [
        {"user": user, "item": item, "time": clock.write(instant, rng), "note": 'a "b", c', "line": "9", "raw": "r", "text": "", "event": "buy"}
        for user, item, instant in rows
    ]  # fmt: skip
    end = rng.choice(["\n", "\r\n"])
    if kind == "jsonl":
        is_number = clock.name in ("s", "ms", "us", "ns") and rng.random() < 0.7
        records = [{c: int(row[c]) if c == "time" and is_number else row[c] for c in columns} for row in cells]
        text = end.join(json.dumps(r, ensure_ascii=rng.random() < 0.5) for r in records) + end
    else:
        out = io.StringIO(newline="")
        quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        writer = csv.writer(out, delimiter="," if kind == "csv" else "\t", quoting=quoting, lineterminator=end)
        writer.writerow(columns)
        writer.writerows([row[c] for c in columns] for row in cells)
        text = out.getvalue()
    if rng.random() < 0.2:
        text = text.rstrip("\r\n")  # no newline at the end
    content = text.encode("utf-8-sig" if rng.random() < 0.2 else "utf-8")
    name = rng.choice([f"log.{kind}", f"log [1].{kind}", f"LOG.{kind.upper()}", f"a b#c.{kind}"])
    if rng.random() < 0.15:
        name, content = name + ".gz", gzip.compress(content)
    return Log(name, content, list(clock.words), truth(rows), f"{kind}, {clock.name}")


def parquet_log(rng: random.Random) -> Log:
    """A Parquet log with the types that warehouses write."""
    rows = draw_rows(rng)
    kind = rng.choice(["int64 s", "int64 ns", "float64 s", "decimal", "date", "ms", "us", "ns", "us zone", "text ns"])
    resolution = {"int64 s": SECOND, "float64 s": SECOND // 4, "decimal": 10**6, "date": 86_400 * SECOND, "ms": 10**6, "us": 1000, "us zone": 1000}  # fmt: skip
    rows = _rounded(rows, resolution.get(kind, 1))
    instants = [instant for _, _, instant in rows]
    words: list[str] = []
    match kind:
        case "int64 s":
            time = pa.array([t // SECOND for t in instants], pa.int64())
        case "int64 ns":
            time, words = pa.array(instants, pa.int64()), ["data.columns.time_unit=ns"]
        case "float64 s":
            time = pa.array([t / SECOND for t in instants], pa.float64())
        case "decimal":
            time = pa.array([Decimal(t // 10**6).scaleb(-3) for t in instants], pa.decimal128(20, 3))
        case "date":
            time = pa.array([t // SECOND // 86_400 for t in instants], pa.int32()).cast(pa.date32())
        case "text ns":
            time = pa.array([_iso(t, 9) for t in instants])
        case _:
            unit = kind[:2]
            size = {"ms": 10**6, "us": 1000, "ns": 1}[unit]
            zone = "Europe/Berlin" if "zone" in kind else None
            time = pa.array([t // size for t in instants], pa.int64()).cast(pa.timestamp(unit, zone))
    users = pa.array([user for user, _, _ in rows])
    items = pa.array([item for _, item, _ in rows])
    if rng.random() < 0.3:
        users, items = users.dictionary_encode(), items.dictionary_encode()
    if rng.random() < 0.3:  # whole floats are whole numbers
        order = {user: float(n) for n, user in enumerate(sorted({u for u, _, _ in rows}))}
        rows = [(str(int(order[user])), item, instant) for user, item, instant in rows]
        users = pa.array([float(user) for user, _, _ in rows], pa.float64())
    out = io.BytesIO()
    columns = {"user": users, "item": items, "time": time, "rating": pa.array([4.0] * len(rows))}
    names = list(columns)
    rng.shuffle(names)
    pq.write_table(pa.table({name: columns[name] for name in names}), out, row_group_size=rng.choice([3, 1000]))
    return Log("log.parquet", out.getvalue(), words, truth(rows), f"parquet, {kind}")


# --- the sources of published data ---------------------------------------------------------------------------------


def source_log(rng: random.Random) -> Log:
    """A small catalogue in one of the published layouts."""
    rows = _rounded([(u, i, t) for u, i, t in draw_rows(rng)], SECOND)
    users = {u: str(n + 1) for n, u in enumerate(sorted({u for u, _, _ in rows}))}
    items = {i: str(n + 1) for n, i in enumerate(sorted({i for _, i, _ in rows}))}
    rows = [(users[u], items[i], t) for u, i, t in rows]
    kind = rng.choice(["ml-100k", "ml-1m", "amazon-2014", "amazon-2018", "amazon-2023", "lastfm", "sequences"])
    more: dict[str, bytes] = {}
    match kind:
        case "ml-100k":
            name, text = "u.data", "".join(f"{u}\t{i}\t3\t{t // SECOND}\n" for u, i, t in rows)
            flags = "|".join(["0"] * 18 + ["1"])
            more["u.item"] = "".join(f"{i}|Café {i} (1999)|01-Jan-1999||u|{flags}\n" for i in items.values()).encode("latin-1")  # fmt: skip
        case "ml-1m":
            name, text = "ratings.dat", "".join(f"{u}::{i}::3::{t // SECOND}\n" for u, i, t in rows)
            more["movies.dat"] = "".join(f"{i}::Café {i} (1999)::Drama\n" for i in items.values()).encode("latin-1")
        case "lastfm":
            name = "user_taggedartists-timestamps.dat"
            text = "userID\tartistID\ttagID\ttimestamp\n" + "".join(f"{u}\t{i}\t1\t{t // 10**6}\n" for u, i, t in rows)
            more["artists.dat"] = ("id\tname\turl\tpictureURL\n" + "".join(f"{i}\tBand {i}\tu\tp\n" for i in items.values())).encode()  # fmt: skip
        case "sequences":
            name, events = "sequences.tsv", truth_events(rows)
            text = "user_id\titem_ids\ttimestamps\n" + "".join(
                f"{u}\t{' '.join(i for i, _ in e)}\t{' '.join(str(t // SECOND) for _, t in e)}\n" for u, e in events.items()
            )  # fmt: skip
            rows = [(u, i, t) for u, e in events.items() for i, t in e]
            more["items.tsv"] = ("item_id\ttitle\n" + "".join(f"{i}\tThing {i}\n" for i in items.values())).encode()
        case "amazon-2023":
            name = "Toys.jsonl"
            text = "".join(
                json.dumps({"user_id": u, "parent_asin": i, "asin": i, "timestamp": t // 10**6, "rating": 5.0}) + "\n" for u, i, t in rows
            )  # fmt: skip
            more["meta_Toys.jsonl"] = "".join(
                json.dumps({"parent_asin": i, "title": f"Toy {i}", "store": "S", "categories": ["T"], "images": [{"hi_res": None}]}) + "\n" for i in items.values()
            ).encode()  # fmt: skip
        case _:
            name = "Toys_5.json"
            text = "".join(json.dumps({"reviewerID": u, "asin": i, "unixReviewTime": t // SECOND, "overall": 5.0}) + "\n" for u, i, t in rows)  # fmt: skip
            records = [{"asin": i, "title": f"Toy {i}", "brand": "B", "categories" if kind == "amazon-2014" else "category": [["T"]] if kind == "amazon-2014" else ["T"]} for i in items.values()]  # fmt: skip
            more["meta_Toys.json"] = "".join((repr(r) if kind == "amazon-2014" else json.dumps(r)) + "\n" for r in records).encode()  # fmt: skip
    source = {"ml": "movielens", "am": "amazon", "la": "lastfm", "se": "sequences"}[kind[:2]]
    words = [f"data.source={source}", "data.k_core=0", "data.duplicates=keep"]
    return Log(name, text.encode(), words, truth(rows), kind, more)


def truth_events(rows: list[Row]) -> dict[str, list[tuple[str, int]]]:
    users: dict[str, list[tuple[str, int]]] = {}
    for user, item, instant in sorted(rows, key=lambda row: row[2]):
        users.setdefault(user, []).append((item, instant))
    return users


KINDS = {"text": text_log, "parquet": parquet_log, "published": source_log}


def write(log: Log, folder: Path) -> list[str]:
    """Put a log's files into a folder; the words that prepare it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {log.name: log.content, **log.more}.items():
        (folder / name).write_bytes(content)
    is_table = not any(word.startswith("data.source=") for word in log.words)
    place = folder / log.name if is_table else folder
    common = ["data.source=table", "data.duplicates=keep"] if is_table else []
    return [*common, f"data.path={place}", "data.negatives=0", *log.words]


def sequences_of(folder: Path) -> dict[str, list[str]]:
    """Each user's items as prepared data has them."""
    from distrec.data import prepared

    data = prepared.load(folder)
    raw, users = data.items["raw"][:], data.users["raw"][:]
    return {users[u]: [raw[data.item[p]] for p in range(data.start[u], data.start[u + 1])] for u in range(data.n_users)}
