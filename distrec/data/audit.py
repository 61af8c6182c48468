"""Is there a leak?  Each check returns findings that name their rows; clean data gives none.

The checks read what is on disk, not how it was made, so they also judge artefacts made elsewhere.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import safetensors
from datasets import Dataset
from scipy import sparse

from distrec.data import split, store
from distrec.data.item_codes import items_digest
from distrec.data.prepared import Prepared
from distrec.data.vectors import texts_digest

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
    checks = [ordered_ids(data), positive_negatives(data), telling_texts(data)]
    for folder in artefacts:
        checks += [held_out_in_artefact(data, folder)]
    return [finding for found in checks for finding in found]


def repeated_targets(data: Prepared) -> list[str]:
    """What is to be known of validation and test targets that their user has had before, a sentence a split; no leak, for
    such a target is ranked among all items.
    """
    repeated = split.repeats(_user(data), data.item, None, "first")
    told = []
    for name in ("valid", "test"):
        users, places = data.targets(name)
        again = np.flatnonzero(repeated[places])
        if len(again):
            user, item = (
                _raw(table, of[again[0]]) for table, of in ((data.users, users), (data.items, data.item[places]))
            )
            told.append(
                f"{len(again):,} of {len(users):,} {name} targets ({len(again) / len(users):.1%}) are items that the user has had "
                f"before (the first: user {user}, item {item}): they are ranked among all items and reported apart; "
                "data.duplicates=first drops repeats"
            )
    return told


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
    shown: list[str] = []
    found = 0
    for low in range(0, data.n_users, 100_000):  # blocks of users: memory stays bounded
        block = data.negatives[low : low + 100_000]
        key = np.arange(low, low + len(block))[:, None] * np.int64(data.n_items) + block
        is_owned = owned[np.minimum(np.searchsorted(owned, key), len(owned) - 1)] == key
        users, columns = np.nonzero(is_owned & (block >= 0))  # -1: a user without negatives
        found += len(users)
        for u, c in list(zip(users, columns, strict=True))[: SHOWN - len(shown)]:
            shown.append(f"user {_raw(data.users, low + u)} negative {c}: item {_raw(data.items, block[u, c])}")
    yield from _finding("negative that is a positive", shown, found)


def telling_texts(data: Prepared) -> Iterator[Finding]:
    """Item text that names who or what it is held-out with, or counts interactions of all splits.

    Looked for: the raw id of a held-out user of that item; the raw id of a held-out target in the text of
    the item before it (both more often than with another user or target put in its place); a number that equals the item's count over all splits where its training count differs.
    Raw ids of digits alone are too common as numbers to be judged.
    """
    words = pl.Series(data.items["text"][:]).str.to_lowercase().str.extract_all(r"[^\s,;()\[\]{}\"'<>]+")
    table = pl.DataFrame({"item": np.arange(data.n_items), "word": words}).explode("word").drop_nulls()
    table = table.with_columns(pl.col("word").str.strip_chars(".:!?")).unique()
    users_named = pl.Series(data.users["raw"][:]).str.to_lowercase()
    columns = [name for name in ("raw", "raw_item") if name in data.items.column_names]
    for part in ("valid", "test"):
        users, places = data.targets(part)
        target = data.item[places].astype(np.int64)
        before = data.item[np.maximum(places - 1, data.start[users])].astype(np.int64)
        pairs = [("names its user", target, users_named.gather(users), users_named.gather(np.roll(users, 1)))]
        for column in columns:
            names = pl.Series(data.items[column][:]).str.to_lowercase()
            pairs.append(
                ("is named by the item before it", before, names.gather(target), names.gather(np.roll(target, 1)))
            )
        for what, item, word, chance in pairs:
            hits, by_chance = (_naming(table, item, names) for names in (word, chance))
            if hits.height > by_chance.height + 5 * np.sqrt(by_chance.height):
                shown = [
                    f"text of item {_raw(data.items, i)} holds {name!r}" for i, name in hits.head(SHOWN).iter_rows()
                ]
                yield from _finding(f"a {part} interaction {what} in an item text", shown, hits.height)
    yield from _counting_texts(data, table)


def _naming(table: pl.DataFrame, item: np.ndarray, names: pl.Series) -> pl.DataFrame:
    """The (item, name) pairs of which the item's text holds the name, apart from numbers and empty names."""
    asked = pl.DataFrame({"item": item, "word": names}).filter(~pl.col("word").str.contains(r"^\d*$"))
    return asked.join(table, on=["item", "word"], how="semi")


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
    tensors = _tensors(folder, ("seen", "row", "column"))
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


def _tensors(folder: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The tensors of these names in an artefact; the others, which may be large, are not read."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="np") as file:
            found |= {name: file.get_tensor(name) for name in names if name in file.keys()}  # noqa: SIM118
    return found


def artefacts_of(data: Prepared, *roots: Path) -> tuple[list[Path], list[Path]]:
    """(finished artefacts below `roots` that were made from this data, those made from other data or from a file).

    Raises: ValueError naming a root that is not there, a broken stamp, or a folder of tensors without one.
    """
    own, other = [], []
    marks = {"data": data.stamp, "texts": texts_digest(data), "items": items_digest(data)}
    for root in roots:
        if not root.is_dir():
            raise ValueError(f"{root}: no such folder; there is nothing to audit")
        tensors = {path.parent for path in root.rglob("*.safetensors")}
        for folder in sorted(tensors | {path.parent for path in root.rglob(store.STAMP)}):
            is_run = (folder / "config.yaml").exists()
            if folder.name.startswith((".", "prepared-")) or "checkpoints" in folder.parts or is_run:
                continue
            made_by = store.read_stamp(folder)["made_by"]
            is_own = any(made_by.get(key) == value for key, value in marks.items())
            is_known = made_by.get("fitted_on") != "file"  # of vectors made elsewhere nothing can be said
            (own if is_own and is_known else other).append(folder)
    return own, other


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
