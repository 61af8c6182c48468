"""Prepared data: numbered sequences, items, splits and negatives, in Arrow files that are memory-mapped.

An artefact `prepared-…` holds
    interactions.arrow   item: int32, time: int64 in epoch microseconds, all users one after the other, oldest first
    users.arrow          raw: text, start, train_end, valid_end: int64 places in `interactions`
    items.arrow          raw: text, text (the filled template), then the source's attributes
    negatives.arrow      item: int32, N for each user, one user after the other; N times -1 for a user who lacks fewer
                         than N items (absent: every user does)
    statistics.json
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
from datasets import Dataset
from datasets.arrow_writer import ArrowWriter
from jaxtyping import Int

from distrec.data import split, statistics, store
from distrec.data.preparation import given, item_table
from distrec.data.raw import sources
from distrec.knobs import Data
from distrec.runtime import log
from distrec.settings import plain

Split = Literal["valid", "test"]
_RULES: dict[str, split.Rule] = {"amazon": "first", "lastfm": "first", "sequences": "keep", "synthetic": "keep"}
_CODE = ("files", "raw", "preparation", "prepared.py", "split.py", "statistics.py")  # decides what prepared data holds
_RAW_LOGS = ("movielens", "amazon", "lastfm")


@dataclass(frozen=True)
class Prepared:
    """Memory-mapped views of prepared data.

    Shapes: N interactions, U users, I items, M negatives.
    """

    folder: Path
    item: Int[np.ndarray, " N"]
    time: Int[np.ndarray, " N"]
    start: Int[np.ndarray, " U1"]
    train_end: Int[np.ndarray, " U"]
    valid_end: Int[np.ndarray, " U"]
    users: Dataset
    items: Dataset
    negatives: Int[np.ndarray, "U M"] | None
    stamp: str  # of its content: equal bytes are equal data, whatever code or place they came from

    @property
    def n_users(self) -> int:
        return len(self.train_end)

    @property
    def n_items(self) -> int:
        return len(self.items)

    def targets(self, split: Split) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
        """(users, places in `item` of their targets); a user's history is everything of theirs before it."""
        place, end = (self.train_end, self.valid_end) if split == "valid" else (self.valid_end, self.start[1:])
        users = np.flatnonzero(place < end)
        return users, place[users]

    def is_train(self) -> np.ndarray:
        """Which interactions may reach anything trained, fitted or built."""
        return np.arange(len(self.item)) < np.repeat(self.train_end, np.diff(self.start))

    def training(self) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " U1"]]:
        """(the training items, user after user; where each user's begin, and the last one's end)."""
        return self.item[self.is_train()], np.r_[0, np.cumsum(self.train_end - self.start[:-1])]


def made_by(config: Data) -> dict[str, Any]:
    """What prepared data depends on: the config without places, the bytes of every input file, and the code that reads them."""
    asked = plain(config)
    for place in ("root", "path", "items", "catalogue"):
        del asked[place]
    files = [[_name(path, config), store.file_digest(path)] for path in sources.input_files(config)]
    places = [Path(__file__).with_name(name) for name in _CODE]
    modules = [path for place in places for path in ([place] if place.is_file() else sorted(place.rglob("*.py")))]
    return {"config": asked, "inputs": files, "code": store.digest([store.file_digest(path) for path in modules])}


def _name(path: Path, config: Data) -> str:
    """A file's name; of one in a folder of parts also the folders in between, whose names may be columns."""
    folders = [place for place in (config.path, config.items) if place and place != path and path.is_relative_to(place)]
    return path.relative_to(folders[0]).as_posix() if folders else path.name


def prepare(config: Data) -> Path:
    """The folder of the prepared data, made now unless it is there already and intact."""
    item_table.check_template(config.text)
    if config.split == "given" and config.source != "table":
        raise ValueError(
            f"data.split=given needs data.source=table; data.source={config.source} does not say which interactions are "
            "for training: use data.split=leave_one_out or global_time"
        )
    made = made_by(config)
    target = store.folder(config.root, "prepared", made)
    if not target.exists():
        log(f"preparing {config.source} data into {target}")
    return store.make(target, made, partial(_fill, config=config))


def load(folder: Path) -> Prepared:
    """Prepared data from a verified folder."""
    users, items = _open(folder, "users"), _open(folder, "items")
    interactions = _open(folder, "interactions")
    start, train_end, valid_end = (_column(users, name) for name in ("start", "train_end", "valid_end"))
    negatives = None
    if (folder / "negatives.arrow").exists():
        negatives = _column(_open(folder, "negatives"), "item").reshape(len(users), -1)
    return Prepared(
        folder=folder,
        item=_column(interactions, "item"),
        time=_column(interactions, "time"),
        start=np.r_[start, len(interactions)],
        train_end=train_end,
        valid_end=valid_end,
        users=users,
        items=items,
        negatives=negatives,
        stamp=store.content(folder),
    )


@dataclass
class _Log:
    """A log in numbers.  `users`, `items`: the raw ids by number; `part`: of a split that came with the data."""

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray | None
    part: np.ndarray | None
    users: pl.Series
    items: pl.Series

    def take(self, rows: np.ndarray) -> None:
        """Keep these rows, in this order; one column after the other, so that memory holds one of them twice."""
        for name in ("user", "item", "time", "part"):
            if (column := getattr(self, name)) is not None:
                setattr(self, name, column[rows])


def _fill(folder: Path, config: Data) -> None:
    raw = sources.read(config)
    counts = {"interactions read": raw.n_read, **raw.dropped, **raw.of_items}
    item_rng, user_rng, tie_rng, negative_rng, cold_rng = (np.random.default_rng([config.seed, i]) for i in range(5))
    users, user = _codes(raw.interactions["user"], user_rng)
    known, item = _codes(raw.interactions["item"], item_rng)
    time, part = (
        raw.interactions[name].to_numpy() if name in raw.interactions.columns else None for name in ("time", "split")
    )
    raw.interactions = raw.interactions.clear()
    table = _Log(user, item, time, part, users, known)
    del user, item, time, part
    _clean(table, config, tie_rng if config.ties == "shuffle" else None, counts)
    counts["moved into time order"] += raw.moved
    start = np.r_[0, np.bincount(table.user, minlength=len(table.users)).cumsum()]
    train_end, valid_end = _split(config, table, start)
    for name, targets in (("validation", train_end < valid_end), ("test", valid_end < start[1:])):
        if not targets.any():
            raise ValueError(
                f"no user of {config.path or config.source} has a {name} target "
                "(leave_one_out needs 3 interactions a user; global_time needs times finer than its windows)"
            )
    negatives = _negatives(config, table, start, negative_rng)
    cold = item_table.without_interactions(raw.items, known)
    unused = counts.get("item rows that join with nothing", len(cold))
    counts["item rows that join with nothing"] = 0 if config.cold_items == "keep" else unused
    counts["item rows removed with their interactions"] = item_table.n_removed(raw.items, known, table.items)
    if config.cold_items == "keep":
        log(
            f"{len(cold):,} rows of the item table have no interaction and are kept: for models that know items by texts"
        )
        table.items, number = item_table.with_cold(table.items, cold, cold_rng)
        table.item = number[table.item]
        negatives = negatives if negatives is None else np.where(negatives < 0, -1, number[negatives])
    attributes, differing = item_table.once(raw.items.filter(raw.items["item"].is_in(table.items.implode())))
    texts = item_table.table(attributes, table.items, config.text)
    counts["repeated item rows"] = raw.items.height - raw.items["item"].n_unique()
    counts |= {"items whose rows in the item table differ": differing} if differing else {}
    counts["items without text"] = int((texts["text"] == "").sum())
    times = table.time if table.time is not None else np.zeros(len(table.item), np.int64)
    _write(folder, "interactions", {"item": table.item, "time": times})
    ends = {"start": start[:-1], "train_end": train_end, "valid_end": valid_end}
    _write(folder, "users", {"raw": table.users.to_arrow(), **ends})
    _write(folder, "items", {name: texts[name].to_arrow() for name in texts.columns})
    if negatives is not None:
        _write(folder, "negatives", {"item": negatives.reshape(-1)})
    report = statistics.report(table.item, table.time, start, train_end, valid_end, len(table.items), counts)
    if negatives is not None:
        report["users without sampled negatives"] = int((negatives[:, 0] < 0).sum())
    (folder / "statistics.json").write_text(json.dumps(report, indent=1))


def _clean(table: _Log, config: Data, tie_rng: np.random.Generator | None, counts: dict[str, int]) -> None:
    """Order the log, drop repeats and what lies outside the k-core; what is dropped is counted."""
    places = split.order(table.user, table.time, tie_rng, table.part)
    table.take(places)
    counts["moved into time order"] = int(((places[1:] < places[:-1]) & (table.user[1:] == table.user[:-1])).sum())
    del places
    rule = config.duplicates or _RULES.get(config.source, "keep" if table.time is None else "same_time")
    keep = ~split.repeats(table.user, table.item, table.time, rule)
    counts[f"duplicates ({rule})"] = int((~keep).sum())
    if table.part is not None:
        names = (table.users, table.items)
        counts |= given.repeated_across(table.user, table.item, table.time, table.part, rule, names)
    k = config.k_core if config.k_core is not None else 5 * (config.source in _RAW_LOGS)
    core = split.k_core(table.user[keep], table.item[keep], k)
    counts[f"outside the {k}-core"] = int((~core).sum())
    keep[keep] = core
    if not keep.any():
        raise ValueError(
            f"nothing is left of {config.path}: no {k}-core in {len(keep):,} interactions; lower data.k_core"
        )
    if not keep.all():
        table.take(keep)
        table.users, table.user = _renumber(table.users, table.user)
        table.items, table.item = _renumber(table.items, table.item)


def _negatives(config: Data, table: _Log, start: np.ndarray, rng: np.random.Generator) -> Int[np.ndarray, "U M"] | None:
    """The sampled negatives of each user, among the items with interactions; None where no user has any."""
    if not config.negatives:
        return None
    drawn = split.draw_negatives(start, table.item, len(table.items), config.negatives, rng)
    without = drawn[:, 0] < 0
    if not without.any():
        return drawn
    name = table.users[int(without.argmax())]
    log(
        f"{'no sampled protocol' if without.all() else 'sampled protocol'}: {without.sum():,} of {len(without):,} users, "
        f"the first of them {name!r}, had so many of the {len(table.items):,} items that fewer than {config.negatives} "
        "others are left; they have no sampled figure: lower data.negatives to give them one"
    )
    return None if without.all() else drawn


def _split(config: Data, table: _Log, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if config.split == "leave_one_out":
        return split.leave_one_out(start)
    if config.split == "given":
        assert table.part is not None
        return given.ends(start, table.part, table.users)
    if table.time is None:
        raise ValueError(f"data.split=global_time needs timestamps; {config.path} has none")
    return split.global_time(start, table.time, config.valid_share, config.test_share)


def _codes(names: pl.Series, rng: np.random.Generator) -> tuple[pl.Series, np.ndarray]:
    """(distinct names in a seeded order, place of each row's name among them).

    The order depends on the names and the seed alone: published ids often follow the test items.
    """
    category = names.cast(pl.Categorical(pl.Categories.random()))
    seen = category.unique()
    distinct = pl.DataFrame({"code": seen.to_physical(), "name": seen.cast(pl.String)}).sort("name")
    distinct = distinct[rng.permutation(len(distinct))]
    place = np.empty(int(distinct["code"].max()) + 1, np.int32)  # pyright: ignore[reportArgumentType]  (a number here)
    place[distinct["code"].to_numpy()] = np.arange(len(distinct), dtype=np.int32)
    return distinct["name"], place[category.to_physical().to_numpy()]


def _renumber(names: pl.Series, code: np.ndarray) -> tuple[pl.Series, np.ndarray]:
    used = np.bincount(code, minlength=len(names)) > 0
    return names.filter(pl.Series(used)), (np.cumsum(used) - 1).astype(np.int32)[code]


def _write(folder: Path, name: str, columns: Mapping[str, Any]) -> None:
    """One Arrow file in one record batch, so that a column is one memory-mapped array."""
    table = pa.table({key: _plain_text(pa.array(values)) for key, values in columns.items()}).combine_chunks()
    place = pa.OSFile(str(folder / f"{name}.arrow"), "wb")  # a path would be taken for an address: a::b, file:c
    with ArrowWriter(stream=place, schema=table.schema) as writer:
        writer.write_table(table, writer_batch_size=max(1, table.num_rows))
        writer.finalize()


def _plain_text(values: Any) -> Any:
    is_view = pa.types.is_string_view(values.type) or pa.types.is_large_string(values.type)
    return values.cast(pa.large_string()) if is_view else values


def _open(folder: Path, name: str) -> Dataset:
    return Dataset.from_file(str(folder / f"{name}.arrow"))


def _column(table: Dataset, name: str) -> np.ndarray:
    chunks = table.data.column(name).chunks
    return chunks[0].to_numpy(zero_copy_only=True)
