"""Is there a leak?  Each check returns findings that name their rows; clean data gives none.

The checks read what is on disk, not how it was made, so they also judge artefacts made elsewhere.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import safetensors.numpy
from datasets import Dataset
from scipy import sparse

from distrec.data import store
from distrec.data.prepared import Prepared

SHOWN = 5  # rows named in a finding


@dataclass(frozen=True)
class Finding:
    """One leak: which check, how many rows, the first of them in words."""

    check: str
    rows: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        more = f" … and {self.rows - len(self.examples)} more" if self.rows > len(self.examples) else ""
        return f"LEAK  {self.check}: {'; '.join(self.examples)}{more}"


def audit(data: Prepared, artefacts: Iterable[Path]) -> list[Finding]:
    """Every finding in prepared data and in the artefacts that were made from it.

    Raises: ValueError when an artefact is corrupt.
    """
    checks = [targets_in_input(data), ordered_ids(data), positive_negatives(data), telling_texts(data)]
    for folder in artefacts:
        checks += [held_out_in_artefact(data, folder)]
    return [finding for found in checks for finding in found]


def targets_in_input(data: Prepared) -> Iterator[Finding]:
    """A validation or test target that the user has already: it can be copied instead of predicted."""
    key = _user(data) * np.int64(data.n_items) + data.item
    order = np.argsort(key, kind="stable")
    repeated = np.zeros(len(key), bool)
    repeated[order[1:]] = key[order[1:]] == key[order[:-1]]
    for split in ("valid", "test"):
        users, places = data.targets(split)
        bad = np.flatnonzero(repeated[places])
        yield from _finding(
            f"{split} target inside its own input",
            [
                f"user {_raw(data.users, users[i])} has item {_raw(data.items, data.item[places[i]])} before"
                for i in bad[:SHOWN]
            ],
            len(bad),
        )


def ordered_ids(data: Prepared) -> Iterator[Finding]:
    """Item ids that follow the order in which items (test items above all) appear.

    Spearman's correlation between an item's id and its first appearance; chance stays within five
    standard deviations of zero, 1/sqrt(n - 1) each.
    """
    _, places = data.targets("test")
    views = {
        "the users' sequences": data.item,
        "the test targets by user": data.item[places],
        "time": data.item[np.argsort(data.time, kind="stable")],
        "the test targets by time": data.item[places[np.argsort(data.time[places], kind="stable")]],
    }
    for name, sequence in views.items():
        items, first = np.unique(sequence, return_index=True)
        n = len(items)
        if n < 30:
            continue
        rho = np.corrcoef(np.arange(n), np.argsort(np.argsort(first)))[0, 1]
        if abs(rho) > 5 / np.sqrt(n - 1):
            shown = items[np.argsort(first)][:SHOWN]
            yield from _finding(
                f"ids follow the order of {name} (rank correlation {rho:+.2f})",
                [f"items {', '.join(map(str, shown))} come first"],
                n,
            )


def positive_negatives(data: Prepared) -> Iterator[Finding]:
    """A stored negative that the user has in any split."""
    if data.negatives is None:
        return
    owned = np.sort(_user(data) * np.int64(data.n_items) + data.item)
    key = np.arange(data.n_users)[:, None] * np.int64(data.n_items) + data.negatives
    place = np.minimum(np.searchsorted(owned, key), len(owned) - 1)
    users, columns = np.nonzero(owned[place] == key)
    yield from _finding(
        "negative that is a positive",
        [
            f"user {_raw(data.users, u)} negative {c}: item {_raw(data.items, data.negatives[u, c])}"
            for u, c in list(zip(users, columns, strict=True))[:SHOWN]
        ],
        len(users),
    )


def telling_texts(data: Prepared) -> Iterator[Finding]:
    """Item text that names who or what it is held-out with, or counts interactions of all splits.

    Looked for: the raw id of a held-out user of that item; the raw id of a held-out target in the text of
    the item before it; a number that equals the item's count over all splits where its training count differs.
    Raw ids of digits alone are too common as numbers to be judged.
    """
    words = pl.Series(data.items["text"][:]).str.to_lowercase().str.extract_all(r"[\w-]+").list.unique()
    table = pl.DataFrame({"item": np.arange(data.n_items), "word": words}).explode("word").drop_nulls()
    for split in ("valid", "test"):
        users, places = data.targets(split)
        target = data.item[places]
        before = data.item[np.maximum(places - 1, data.start[users])]
        user_names, item_names = (pl.Series(names["raw"][:]).str.to_lowercase() for names in (data.users, data.items))
        pairs = {
            "names its user": (target, user_names.gather(users)),
            "is named by the item before it": (before, item_names.gather(target)),
        }
        for what, (item, word) in pairs.items():
            asked = pl.DataFrame({"item": item.astype(np.int64), "word": word, "user": users}).filter(
                ~pl.col("word").str.contains(r"^\d*$")
            )
            hits = asked.join(table, on=["item", "word"], how="semi")
            hits = hits.filter(pl.col("word") != item_names.gather(hits["item"]))
            shown = [
                f"text of item {_raw(data.items, row['item'])} holds {row['word']!r}"
                for row in hits.head(SHOWN).iter_rows(named=True)
            ]
            yield from _finding(f"a {split} interaction {what} in an item text", shown, hits.height)
    yield from _counting_texts(data, table)


def _counting_texts(data: Prepared, words: pl.DataFrame) -> Iterator[Finding]:
    """Numbers agree with an item's count by chance now and then: more often than with the counts of other items is a leak."""
    every = np.bincount(data.item, minlength=data.n_items)
    train = np.bincount(data.item[data.is_train()], minlength=data.n_items)
    told = np.flatnonzero(every != train)
    elsewhere = np.roll(every[told], 1)

    def holding(counts: np.ndarray) -> pl.DataFrame:
        asked = pl.DataFrame({"item": told, "word": pl.Series(counts).cast(pl.String)})
        return asked.join(words, on=["item", "word"], how="semi")

    hits, chance = holding(every[told]), holding(elsewhere).height
    if hits.height > chance + 5 * np.sqrt(chance + 1):
        shown = [
            f"text of item {_raw(data.items, item)} holds {word}, its count over all splits"
            for item, word in hits.head(SHOWN).iter_rows()
        ]
        yield from _finding("item text counts held-out interactions", shown, hits.height)


def held_out_in_artefact(data: Prepared, folder: Path) -> Iterator[Finding]:
    """A validation or test interaction inside an artefact that must know the training split alone.

    The stamp says what it was fitted on ("train", or "text" for what never reads an interaction).  Fitted on
    train, it carries `seen` (how often each item was read) which may not exceed the training counts; the
    edges of a graph must join items that some user has together in training.
    """
    made_by = store.verify(folder)["made_by"]
    fitted_on = made_by.get("fitted_on")
    if fitted_on not in ("train", "text"):
        yield Finding(f"{folder.name} was fitted on {fitted_on!r}, not on 'train' or 'text'", 1, (str(folder),))
    tensors = {
        name: value
        for path in sorted(folder.glob("*.safetensors"))
        for name, value in safetensors.numpy.load_file(path).items()
    }
    train = np.bincount(data.item[data.is_train()], minlength=data.n_items)
    seen = tensors.get("seen")
    if fitted_on == "train" and seen is None:
        yield Finding(f"{folder.name} does not say how often it read each item (`seen`)", 1, (str(folder),))
    elif seen is not None:
        if len(seen) != data.n_items:
            raise ValueError(
                f"{folder} is about {len(seen)} items, the data has {data.n_items}: it belongs to other data"
            )
        bad = np.flatnonzero(seen > train)
        shown = [f"item {_raw(data.items, i)} was read {seen[i]} times, training has {train[i]}" for i in bad[:SHOWN]]
        yield from _finding(f"{folder.name} read held-out interactions", shown, len(bad))
    if {"row", "column"} <= tensors.keys():
        row, column = tensors["row"].astype(np.int64), tensors["column"].astype(np.int64)
        bad = np.flatnonzero(~_together(data, row, column) & (row != column))
        shown = [f"edge {_raw(data.items, row[i])} – {_raw(data.items, column[i])}" for i in bad[:SHOWN]]
        yield from _finding(f"{folder.name} joins items that no user has together in training", shown, len(bad))


def artefacts_of(data: Prepared, *roots: Path) -> list[Path]:
    """The finished artefacts below `roots` that were made from this data."""
    found = []
    for stamp in sorted({path for root in roots if root.is_dir() for path in root.rglob(store.STAMP)}):
        folder = stamp.parent
        hidden = folder.name.startswith(".") or folder.parent.name == "checkpoints" or (folder / "test.json").exists()
        if not hidden and json.loads(stamp.read_text()).get("made_by", {}).get("data") == data.stamp:
            found.append(folder)
    return found


def _together(data: Prepared, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Whether some user has both items in training, for each pair; in blocks, never items × items dense."""
    train = data.is_train()
    has = sparse.csr_array(
        (np.ones(train.sum(), np.int32), (data.item[train], _user(data)[train])), shape=(data.n_items, data.n_users)
    )
    joined = [
        np.asarray(has[row[low : low + 65_536]].multiply(has[column[low : low + 65_536]]).sum(1)).ravel() > 0
        for low in range(0, len(row), 65_536)
    ]
    return np.concatenate([np.empty(0, bool), *joined])


def _user(data: Prepared) -> np.ndarray:
    return np.repeat(np.arange(data.n_users), np.diff(data.start))


def _raw(table: Dataset, row: Any) -> str:
    return table[int(row)]["raw"]


def _finding(check: str, examples: list[str], rows: int) -> Iterator[Finding]:
    if rows:
        yield Finding(check, rows, tuple(examples))
