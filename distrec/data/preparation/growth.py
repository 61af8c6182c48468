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

_DAY = 86_400 * 10**6  # microseconds
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

    An interaction is known by its user, item and time; where they repeat, by how often.  One that is in one of both data
    alone may be the other's with a time that is written otherwise (seconds, days, none): the same user and item within a day.
    """
    before, more = _rows(then, numbers(now.users, then.users), numbers(now.items, then.items)), _rows(now)
    bad = pl.concat([_trained_on(before, more), _trained_on_otherwise(before, more)]).unique().sort("user", "item")
    if not len(bad):
        return
    user, item = now.users[bad["user"][0]]["raw"], now.items[bad["item"][0]]["raw"]
    counts = np.bincount(before.filter(~pl.col("is_train") & (pl.col("user") >= 0))["user"], minlength=now.n_users)
    short = int((counts[bad["user"].to_numpy()] == 0).sum())
    why = (
        f" ({short:,} of users who had too few then for any to be held out: with data.k_core=3 or more, in both runs, "
        "there are none of those)"
    )
    raise ValueError(
        f"from={run} was trained on {len(bad):,} interactions that these data hold out for validation or test, the "
        f"first of them item {brief(item)} of user {brief(user)}{why * (short > 0)}: its figures would be flattered; split "
        "the data as then, or train anew"
    )


def _trained_on(before: pl.DataFrame, now: pl.DataFrame) -> pl.DataFrame:
    """(user, item, time) of what is held out now and was trained on then."""
    keys = ["user", "item", "time"]
    is_train = pl.col("is_train")
    count = before.filter(is_train).group_by(keys).len("before").join(now.filter(~is_train).unique(keys), on=keys)
    both = count.join(now.filter(is_train).group_by(keys).len("now"), on=keys, how="left")
    return both.filter(pl.col("before") > pl.col("now").fill_null(0)).select(keys)


def _trained_on_otherwise(before: pl.DataFrame, now: pl.DataFrame) -> pl.DataFrame:
    """(user, item, time) of what is held out now and was trained on then, it seems, by another time."""
    keys, pair, is_train = ["user", "item", "time"], ["user", "item"], pl.col("is_train")
    has_times = all((rows["time"] != 0).any() for rows in (before, now))
    lost = before.join(now, on=keys, how="anti").filter(is_train)
    fresh = now.join(before, on=keys, how="anti")
    near = fresh.filter(~is_train).join(lost, on=pair, suffix="_then")
    near = near.filter((pl.col("time") - pl.col("time_then")).abs() < _DAY) if has_times else near
    counts = (
        lost.group_by(pair).len("before").join(fresh.filter(is_train).group_by(pair).len("now"), on=pair, how="left")
    )
    more = counts.filter(pl.col("before") > pl.col("now").fill_null(0))
    return near.join(more, on=pair, how="semi").select(keys).unique()


def _rows(data: Prepared, users: np.ndarray | None = None, items: np.ndarray | None = None) -> pl.DataFrame:
    """(user, item, time, is_train) of all interactions, in other numbers where they are given (-1: in neither)."""
    user = np.repeat(np.arange(data.n_users), np.diff(data.start))
    item = data.item.astype(np.int64)
    user, item = user if users is None else users[user], item if items is None else items[item]
    return pl.DataFrame({"user": user, "item": item, "time": data.time, "is_train": data.is_train()})


def _changed_files(then: list[Any], now: list[Any]) -> list[str]:
    """The names of the input files whose bytes are others."""
    before = {tuple(each) for each in then}
    return [name for name, digest in now if (name, digest) not in before]
