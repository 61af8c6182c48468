"""Prepared data: numbered sequences, items, splits and negatives, in Arrow files that are memory-mapped.

An artefact `prepared-…` holds
    interactions.arrow   item: int32, time: int64 in epoch microseconds, all users one after the other, oldest first
    users.arrow          raw: text, start, train_end, valid_end: int64 places in `interactions`
    items.arrow          raw: text, text (the filled template), then the source's attributes
    negatives.arrow      item: int32, N for each user, one user after the other (absent: catalogue too small)
    statistics.json
"""

import json
import string
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
from distrec.data.raw import layout, lines, sources, synthetic, table
from distrec.knobs import Data
from distrec.runtime import log
from distrec.settings import plain

Split = Literal["valid", "test"]
_RULES: dict[str, split.Rule] = {"amazon": "first", "lastfm": "first", "sequences": "keep", "synthetic": "keep"}
_READS = (layout, lines, sources, split, statistics, synthetic, table)
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
    files = [[path.name, store.file_digest(path)] for path in sources.input_files(config)]
    code = [store.file_digest(Path(str(module.__file__))) for module in _READS]
    return {"config": asked, "inputs": files, "code": store.digest([*code, store.file_digest(Path(__file__))])}


def prepare(config: Data) -> Path:
    """The folder of the prepared data, made now unless it is there already and intact."""
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


def _fill(folder: Path, config: Data) -> None:
    _check_template(config.text)
    raw = sources.read(config)
    counts = {"interactions read": raw.interactions.height + raw.dropped.get("bad timestamps", 0), **raw.dropped}
    item_rng, user_rng, tie_rng, negative_rng = (np.random.default_rng([config.seed, i]) for i in range(4))
    user_names, user = _codes(raw.interactions["user"], user_rng)
    item_names, item = _codes(raw.interactions["item"], item_rng)
    time = raw.interactions["time"].to_numpy() if raw.has_time else None
    raw.interactions = raw.interactions.clear()

    places = split.order(user, time, tie_rng if config.ties == "shuffle" else None)
    user, item, time = user[places], item[places], None if time is None else time[places]
    counts["moved into time order"] = int(((places[1:] < places[:-1]) & (user[1:] == user[:-1])).sum())
    del places
    rule = config.duplicates or _RULES.get(config.source, "same_time")
    keep = ~split.repeats(user, item, time, rule)
    counts[f"duplicates ({rule})"] = int((~keep).sum())
    k = config.k_core if config.k_core is not None else 5 * (config.source in _RAW_LOGS)
    core = split.k_core(user[keep], item[keep], k)
    counts[f"outside the {k}-core"] = int((~core).sum())
    keep[keep] = core
    if not keep.any():
        raise ValueError(
            f"nothing is left of {config.path}: no {k}-core in {len(keep):,} interactions; lower data.k_core"
        )
    if not keep.all():
        user, item, time = user[keep], item[keep], None if time is None else time[keep]
        user_names, user = _renumber(user_names, user)
        item_names, item = _renumber(item_names, item)
    start = np.r_[0, np.bincount(user, minlength=len(user_names)).cumsum()]
    del user

    train_end, valid_end = _split(config, start, time)
    for name, targets in (("validation", train_end < valid_end), ("test", valid_end < start[1:])):
        if not targets.any():
            raise ValueError(
                f"no user of {config.path or config.source} has a {name} target "
                "(leave_one_out needs 3 interactions a user; global_time needs times finer than its windows)"
            )
    texts = _items(raw.items, item_names, config.text)
    counts["repeated item rows"] = raw.items.height - raw.items["item"].n_unique()
    counts["items without text"] = int((texts["text"] == "").sum())
    _write(folder, "interactions", {"item": item, "time": time if time is not None else np.zeros(len(item), np.int64)})
    ends = {"start": start[:-1], "train_end": train_end, "valid_end": valid_end}
    _write(folder, "users", {"raw": user_names.to_arrow(), **ends})
    _write(folder, "items", {name: texts[name].to_arrow() for name in texts.columns})
    if config.negatives:
        try:
            drawn = split.draw_negatives(start, item, len(item_names), config.negatives, negative_rng)
            _write(folder, "negatives", {"item": drawn.reshape(-1)})
        except ValueError as error:
            log(f"no sampled protocol: {error}")
    report = statistics.report(item, time, start, train_end, valid_end, len(item_names), counts)
    (folder / "statistics.json").write_text(json.dumps(report, indent=1))


def _split(config: Data, start: np.ndarray, time: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if config.split == "leave_one_out":
        return split.leave_one_out(start)
    if time is None:
        raise ValueError(f"data.split=global_time needs timestamps; {config.path} has none")
    return split.global_time(start, time, config.valid_share, config.test_share)


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


def _check_template(template: str) -> None:
    """A template fills named fields and does nothing else: no attributes, no indices, no formats."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"data.text={template!r}: {error}") from None
    for _, name, form, conversion in parts:
        if name is not None and (not name.isidentifier() or form or conversion):
            raise ValueError(f"data.text={template!r}: a field is a plain name in braces, got {name!r}")


def _items(attributes: pl.DataFrame, names: pl.Series, template: str) -> pl.DataFrame:
    """One row per item in the order of ids: raw, text, then attributes ("" where the source has none)."""
    fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    known = [name for name in attributes.columns if name != "item"]
    for name in fields:
        if name not in known and name != "item":
            raise ValueError(
                f"data.text={template!r}: items have no {name!r}; they have: {', '.join(['item', *known])}"
            )
    once = attributes.unique("item", keep="first", maintain_order=True)
    rows = (
        names.to_frame("item")
        .join(once, on="item", how="left", maintain_order="left")
        .with_columns(pl.col(known).fill_null(""))
    )
    parts = [
        part
        for literal, name, _, _ in string.Formatter().parse(template)
        for part in (pl.lit(literal), name and pl.col(name))
        if part is not None
    ]
    text = pl.concat_str(parts) if parts else pl.lit("")
    empty = pl.all_horizontal(pl.col(name) == "" for name in fields) if fields else pl.lit(False)
    rows = rows.with_columns(text=pl.when(empty).then(pl.lit("")).otherwise(text.str.strip_chars()))
    return rows.select(pl.col("item").alias("raw"), "text", *[name for name in known if name not in ("raw", "text")])


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
