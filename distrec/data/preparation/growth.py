"""Prepared data then and now: what changed between two of them, by the users' and items' own names.

Numbers say nothing here: ids are a seeded shuffle of the names, so that one new item moves all others.

Shapes: N interactions, U users, I items, J items or users of other data.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from datasets import Dataset
from jaxtyping import Int

from distrec.data import prepared, store
from distrec.data.histories import Histories
from distrec.data.prepared import Prepared
from distrec.runtime import brief, log

_ARRAYS = ("interactions.arrow", "users.arrow", "items.arrow", "negatives.arrow")


def find(root: Path, content: str) -> Path | None:
    """The folder of the prepared data with this content below `root`; None where there is none."""
    for folder in sorted(root.glob("prepared-*")):
        if (folder / store.STAMP).is_file() and store.content(folder) == content:
            return folder
    return None


def is_same(then: Path, now: Path) -> bool:
    """Whether two prepared data hold the same, apart from the report on them."""
    files = [store.read_stamp(folder)["files"] for folder in (then, now)]
    return all(files[0].get(name) == files[1].get(name) for name in _ARRAYS)


def numbers(then: Dataset, now: Dataset) -> Int[np.ndarray, " I"]:
    """The number in `then` of each user or item of `now`, by its own name; -1 for a new one."""
    old, new = (pl.DataFrame(pl.from_arrow(names.data.table.select(["raw"]))) for names in (then, now))
    place = new.join(old.with_row_index("number"), on="raw", how="left", maintain_order="left")["number"]
    return place.cast(pl.Int64).fill_null(-1).to_numpy(writable=True)


def changes(then: Path, now: Prepared, run: Path) -> str:
    """What changed since a run: the files, the settings of the data, and by how many interactions, users and items."""
    made, new = (store.read_stamp(folder)["made_by"] for folder in (then, now.folder))
    words = [f"{file} has changed" for file in _changed_files(made["inputs"], new["inputs"])]
    settings, others = store.flat(made["config"]), store.flat(new["config"])
    for key in sorted(settings.keys() | others.keys()):
        if settings.get(key) != others.get(key):
            words.append(f"data.{key} was {settings.get(key)!r}, now {others.get(key)!r}")
    if not words and made["code"] != new["code"]:
        words.append("the data were prepared by another version of distrec")
    old = prepared.load(then)
    more = len(now.item) - len(old.item)
    counts = [f"{abs(more):,} interaction{'s' * (abs(more) != 1)} {'more' if more >= 0 else 'fewer'}"]
    for name, before, after in (("user", old.users, now.users), ("item", old.items, now.items)):
        n_new = int((numbers(before, after) < 0).sum())
        n_gone = len(before) - (len(after) - n_new)
        counts.append(f"{n_new:,} new {name}{'s' * (n_new != 1)}")
        counts += [f"{n_gone:,} {name}{'s' * (n_gone != 1)} gone"] if n_gone else []
    return f"{' and '.join(words)} since the run in {run}: {', '.join(counts)}"


def histories(now: Prepared, then: Prepared, unknown: Literal["refuse", "drop"]) -> Histories:
    """All that every user of `now` ever did, in the numbers of `then`.

    `unknown`: what to do about items that are new; a user who has no other item is left out, and counted.

    Raises: ValueError naming the first new item when they are refused, or when nobody is left.
    """
    place = numbers(then.items, now.items)
    item = place[now.item]
    is_known = item >= 0
    user = np.repeat(np.arange(now.n_users), np.diff(now.start))
    if not is_known.all():
        first = int((~is_known).argmax())
        what = (
            f"{(~is_known).sum():,} of {len(item):,} interactions are with {(place < 0).sum():,} items that the run was not "
            f"trained on, the first of them {brief(now.items[int(now.item[first])]['raw'])} of user {brief(now.users[int(user[first])]['raw'])}"
        )
        if unknown == "refuse":
            raise ValueError(f"{what}: give unknown=drop to recommend by the others, or go on training with them")
        log(f"{what}; they are left out")
    length = np.bincount(user[is_known], minlength=now.n_users)
    kept = np.flatnonzero(length > 0)
    if len(kept) < now.n_users:
        log(f"{now.n_users - len(kept):,} of {now.n_users:,} users have no other item and get no list")
    if not len(kept):
        raise ValueError("no user has an item that the run was trained on: train anew")
    names = now.users.data.column("raw").take(kept).to_pylist()
    start = np.r_[0, np.cumsum(length[kept])]
    return Histories(names, numbers(then.users, now.users)[kept], item[is_known], start)


def check_held_out(then: Prepared, now: Prepared, run: Path) -> None:
    """Raise ValueError when a model of `then`'s training interactions knows what `now` holds out.

    An interaction is known by its user, item and time; where they repeat, by how often.
    """
    mask = now.is_train()
    train, held_out = _rows(now, mask), _rows(now, ~mask)
    keys = ["user", "item", "time"]
    before = _rows(then, then.is_train(), numbers(now.users, then.users), numbers(now.items, then.items))
    count = before.group_by(keys).len("before").join(held_out.unique(), on=keys)
    both = count.join(train.group_by(keys).len("now"), on=keys, how="left").with_columns(pl.col("now").fill_null(0))
    bad = both.filter(pl.col("before") > pl.col("now")).sort(keys)
    if len(bad):
        user, item = now.users[bad["user"][0]]["raw"], now.items[bad["item"][0]]["raw"]
        raise ValueError(
            f"from={run} was trained on {len(bad):,} interactions that these data hold out for validation or test, the "
            f"first of them item {brief(item)} of user {brief(user)}: its figures would be flattered; split the data as then, or "
            "train anew"
        )


def _rows(
    data: Prepared, mask: np.ndarray, users: np.ndarray | None = None, items: np.ndarray | None = None
) -> pl.DataFrame:
    """(user, item, time) of some interactions, in other numbers where they are given (-1: in neither)."""
    user = np.repeat(np.arange(data.n_users), np.diff(data.start))[mask]
    item = data.item[mask].astype(np.int64)
    user, item = user if users is None else users[user], item if items is None else items[item]
    return pl.DataFrame({"user": user, "item": item, "time": data.time[mask]})


def _changed_files(then: list[Any], now: list[Any]) -> list[str]:
    """The names of the input files whose bytes are others."""
    before = {tuple(each) for each in then}
    return [name for name, digest in now if (name, digest) not in before]
