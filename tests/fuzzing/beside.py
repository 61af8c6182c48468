"""What lies beside a log, with a known truth: item tables, histories, vectors, files of settings and of sweeps.

A reader is a pair: draw(rng) → Files, whose truth is what a sound one holds; read(place) → what was read of it.
"""

import functools
import gzip
import io
import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from distrec import config as cfg
from distrec.data import histories, prepared, vectors
from fuzzing.logs import CLOCKS, NAMES, SECOND
from fuzzing.words import TEXTS
from tune import space

ITEMS = [*NAMES, *(f"i{n}" for n in range(12))]
_HOLD = tempfile.TemporaryDirectory()


@dataclass
class Files:
    """Contents by name; `place` is the name to be read (a folder's, where parts lie in it)."""

    contents: dict[str, bytes]
    place: str
    truth: Any
    what: str


@functools.cache
def catalogue() -> prepared.Prepared:
    """Every user had every item."""
    rows = [
        {"user": user, "item": item, "time": 1_600_000_000 + n}
        for user in ("a", "b", "7")
        for n, item in enumerate(ITEMS)
    ]
    log = Path(_HOLD.name, "log.jsonl")
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["data.source=table", f"data.path={log}", f"data.root={_HOLD.name}/artefacts", "data.negatives=0"]
    return prepared.load(prepared.prepare(cfg.load(words).data))


def _table(rows: list[dict[str, Any]], rng: random.Random, kinds: str = "csv tsv jsonl parquet") -> tuple[str, bytes]:
    """Rows of texts in a file of any kind: (its ending, its bytes)."""
    kind = rng.choice(kinds.split())
    names = list(rows[0])
    rng.shuffle(names)
    rows = [{name: row[name] for name in names} for row in rows]
    if kind == "parquet":
        content = io.BytesIO()
        columns = {name: pa.array([row[name] for row in rows]) for name in names}
        if rng.random() < 0.3:
            columns = {n: c.dictionary_encode() if c.type == pa.string() else c for n, c in columns.items()}
        pq.write_table(pa.table(columns), content, row_group_size=rng.choice([3, 1000]))
        return ".parquet", content.getvalue()
    if kind == "jsonl":
        text = "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in rows)
    else:
        separator = "," if kind == "csv" else "\t"
        text = pl.DataFrame(rows).write_csv(separator=separator, quote_style=rng.choice(["necessary", "always"]))
    body = text.replace("\n", "\r\n" if rng.random() < 0.3 else "\n").encode(
        "utf-8-sig" if rng.random() < 0.2 else "utf-8"
    )
    match rng.choice(["", "", "", ".gz", ".zst"]):
        case ".gz":
            return f".{kind}.gz", gzip.compress(body)
        case ".zst":
            return f".{kind}.zst", bytes(pa.compress(body, codec="zstd", asbytes=True))
        case _:
            return rng.choice([f".{kind}", f".{kind.upper()}"]), body


# --- item tables --------------------------------------------------------------------------------------------------


def draw_items(rng: random.Random) -> Files:
    """The titles of the items in any order, with columns beside them and rows that join with nothing."""
    titles = {item: rng.choice(["Thing", "Ünïcode", "名", "It's", "3 < 4", "AT&T", "1984", "x, y", 'a "b"']) + f" {n}" for n, item in enumerate(ITEMS)}  # fmt: skip
    rows = [{"item": item, "title": title, "brand": rng.choice(["B", "", "Ö"])} for item, title in titles.items()]
    rows += [{"item": f"alone{n}", "title": "alone", "brand": ""} for n in range(rng.randrange(3))]
    rng.shuffle(rows)
    extra = rng.sample(["line", "raw", "text", "part", "time", "user", "index"], rng.randrange(3))
    rows = [{**row, **dict.fromkeys(extra, "7")} for row in rows]
    ending, body = _table(rows, rng)
    return Files({f"items{ending}": body}, f"items{ending}", titles, f"items{ending}")


def read_items(place: Path) -> dict[str, str]:
    log = Path(_HOLD.name, "log.jsonl")
    catalogue()
    words = ["data.source=table", f"data.path={log}", f"data.items={place}", "data.text={title}", "data.negatives=0"]
    data = prepared.load(prepared.prepare(cfg.load([*words, f"data.root={place.parent}/artefacts"]).data))
    return dict(zip(data.items["raw"][:], data.items["text"][:], strict=True))


# --- histories ----------------------------------------------------------------------------------------------------


def draw_histories(rng: random.Random) -> Files:
    """A list a user, or a log, in one file or in parts."""
    users = rng.sample(["a", "b", "7", "new", "ü", "x,y", "0012"], rng.randrange(1, 6))
    if rng.random() < 0.5:
        return _listed_histories(users, rng)
    clock = rng.choice(CLOCKS)
    base = 1_100_000_000 * SECOND
    rows = [(u, rng.choice(ITEMS), (base + rng.randrange(5 * 10**17)) // clock.resolution * clock.resolution) for u in users for _ in range(rng.randrange(1, 6))]  # fmt: skip
    if any(word.startswith("data.columns") for word in clock.words):
        clock = CLOCKS[0]
        rows = [(u, i, t // SECOND * SECOND) for u, i, t in rows]
    rng.shuffle(rows)
    truth: dict[str, list[str]] = {}
    for user, item, _ in sorted(rows, key=lambda row: row[2]):
        truth.setdefault(user, []).append(item)
    ending, body = _table([{"user": u, "item": i, "time": clock.write(t, rng)} for u, i, t in rows], rng)
    return Files({f"h{ending}": body}, f"h{ending}", list(truth.items()), f"log {clock.name} {ending}")


def _listed_histories(users: list[str], rng: random.Random) -> Files:
    is_text = rng.random() < 0.4
    items = [item for item in ITEMS if " " not in item and item[0] not in "[('\""] if is_text else ITEMS
    truth = [(user, [rng.choice(items) for _ in range(rng.randrange(1, 6))]) for user in users]
    rows = [{"user": u, "items": " ".join(found) if is_text else found} for u, found in truth]
    if not is_text and rng.random() < 0.4:
        parts = {f"h/part-{n}.jsonl": json.dumps(row).encode() + b"\n" for n, row in enumerate(rows)}
        return Files(parts, "h", truth, "parts")
    ending, body = _table(rows, rng, "csv tsv" if is_text else "jsonl parquet")
    return Files({f"h{ending}": body}, f"h{ending}", truth, f"lists {ending}")


def read_histories(place: Path) -> list[tuple[str, list[str]]]:
    data = catalogue()
    found, names = histories.read(place, data), data.items["raw"][:]
    return [(u, [names[i] for i in found.item[found.start[n] : found.start[n + 1]]]) for n, u in enumerate(found.user)]


# --- vectors ------------------------------------------------------------------------------------------------------


def draw_vectors(rng: random.Random) -> Files:
    """A vector an item in any order, with others beside them, in every form that says which is which."""
    ids = [*ITEMS, *(f"alone{n}" for n in range(rng.randrange(3)))]
    rng.shuffle(ids)
    kind = rng.choice([np.float16, np.float32, np.float64, np.int16])
    table = np.random.default_rng(rng.randrange(10**6)).integers(-99, 99, (len(ids), rng.choice([1, 4]))).astype(kind)
    table[table == 0] = 1
    truth = {name: [float(x) for x in row] for name, row in zip(ids, table, strict=True) if name in ITEMS}
    form = rng.choice(["npy txt", "npy npy", "npz", "parquet", "fixed", "parts"])
    out = io.BytesIO()
    match form:
        case "npy txt" | "npy npy":
            np.save(out, table)
            names = io.BytesIO()
            np.save(names, np.array(ids))
            beside = ("\n".join(ids) + "\n").encode() if form == "npy txt" else names.getvalue()
            contents = {"v.npy": out.getvalue(), f"v.ids.{form[-3:]}": beside}
        case "npz":
            np.savez(out, ids=np.array(ids), vectors=table)
            contents = {"v.npz": out.getvalue()}
        case "parts":
            half = len(ids) // 2
            contents = {f"v/part-{n}.parquet": _vectors(ids[part], table[part], False) for n, part in enumerate((slice(half), slice(half, None)))}  # fmt: skip
        case _:
            contents = {"v.parquet": _vectors(ids, table, form == "fixed")}
    place = "v" if form == "parts" else next(iter(contents))
    return Files(contents, place, truth, f"{form} {table.dtype}")


def _vectors(ids: list[str], table: np.ndarray, is_fixed: bool) -> bytes:
    flat = pa.array(table.flatten())
    lists = pa.FixedSizeListArray.from_arrays(flat, table.shape[1])
    column = lists if is_fixed else lists.cast(pa.list_(flat.type))
    out = io.BytesIO()
    pq.write_table(pa.table({"vector": column, "item": ids}), out)
    return out.getvalue()


def read_vectors(place: Path) -> dict[str, list[float]]:
    data = catalogue()
    table, _ = vectors.load(place, data)
    return {name: [float(x) for x in row] for name, row in zip(data.items["raw"][:], table, strict=True)}


# --- files of settings and of sweeps ------------------------------------------------------------------------------

_VALUES: dict[str, Callable[[random.Random], Any]] = {
    "data.text": lambda rng: "{title} " + rng.choice([t for t in TEXTS if "{" not in t and "}" not in t]),
    "codes.category": lambda rng: rng.choice(TEXTS),
    "embed.revision": lambda rng: rng.choice([None, *TEXTS]),
    "train.lr": lambda rng: rng.choice([1e-3, 0.5, 3e-16, 1e16]),
    "train.epochs": lambda rng: rng.choice([1, 7, 10**6]),
    "train.betas": lambda rng: [0.9, rng.choice([0.98, 0.5])],
    "train.async_save": lambda rng: rng.random() < 0.5,
    "data.k_core": lambda rng: rng.randrange(9),
}


def _settings(rng: random.Random) -> dict[str, Any]:
    tree: dict[str, Any] = {"model": {"name": "tiger"}}
    for key in rng.sample(list(_VALUES), rng.randrange(1, len(_VALUES))):
        section, name = key.split(".")
        tree.setdefault(section, {})[name] = _VALUES[key](rng)
    return tree


def _yaml(tree: dict[str, Any], rng: random.Random) -> bytes:
    style = rng.choice([None, True, False])
    text = yaml.safe_dump(
        tree, default_flow_style=style, allow_unicode=rng.random() < 0.5, width=rng.choice([20, 10**6])
    )
    text = rng.choice(["", "# a comment\n", "---\n"]) + text
    return text.replace("\n", "\r\n" if rng.random() < 0.2 else "\n").encode(
        "utf-8-sig" if rng.random() < 0.2 else "utf-8"
    )


def _flat(config: Any) -> dict[str, Any]:
    value = {key: functools.reduce(getattr, key.split("."), config) for key in _VALUES}
    return {key: list(each) if isinstance(each, tuple) else each for key, each in value.items()}


def draw_settings(rng: random.Random) -> Files:
    """A file of settings, as PyYAML may write it."""
    tree = _settings(rng)
    flat = {f"{s}.{n}": v for s, values in tree.items() for n, v in values.items()}
    truth = _flat(cfg.load([])) | {key: flat[key] for key in _VALUES if key in flat}
    return Files({"c.yaml": _yaml(tree, rng)}, "c.yaml", truth, "settings")


def read_settings(place: Path) -> dict[str, Any]:
    return _flat(cfg.load([str(place)]))


def draw_sweep(rng: random.Random) -> Files:
    """A sweep over some keys."""
    keys = rng.sample(
        ["train.lr", "train.epochs", "train.betas", "codes.category", "train.async_save"], rng.randrange(1, 4)
    )
    values = {key: [_VALUES[key](rng) for _ in range(rng.randrange(1, 4))] for key in keys}
    values = {key: [v for n, v in enumerate(each) if v not in each[:n]] for key, each in values.items()}
    tree = {"model": {"name": "tiger"}, "sweep": {"space": values}}
    return Files({"s.yaml": _yaml(tree, rng)}, "s.yaml", values, "sweep")


def read_sweep(place: Path) -> dict[str, list[Any]]:
    _, found = space.load([str(place)])
    points = list(space.grid(found))
    columns: dict[str, list[Any]] = {key: [] for key in points[0]}
    for point in points:
        for key, value in point.items():
            if value not in columns[key]:
                columns[key].append(value)
    return columns


READERS: dict[str, tuple[Callable[[random.Random], Files], Callable[[Path], Any]]] = {
    "items": (draw_items, read_items),
    "histories": (draw_histories, read_histories),
    "vectors": (draw_vectors, read_vectors),
    "settings": (draw_settings, read_settings),
    "sweeps": (draw_sweep, read_sweep),
}
