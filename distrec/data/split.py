"""From a log of interactions to ordered, numbered, split sequences.

Shapes: N interactions, U users, I items.  Sequences lie one after the other in flat arrays; user u owns
the places start[u] … start[u+1] - 1, oldest first.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Bool, Int
from scipy import sparse

Rule = Literal["keep", "same_time", "first"]


def repeats(
    user: Int[np.ndarray, " N"],
    item: Int[np.ndarray, " N"],
    time: Int[np.ndarray, " N"] | None,
    rule: Rule,
) -> Bool[np.ndarray, " N"]:
    """Which rows of an ordered log repeat an earlier one: an equal (user, item, time), or for `first` (user, item)."""
    if rule == "keep":
        return np.zeros(len(user), bool)
    if rule == "first" or time is None:
        pairs = (
            user.astype(np.int64) * (item.max(initial=0) + np.int64(1)) + item
        )  # one number takes a third of a struct's memory
        return ~pl.Series(pairs).is_first_distinct().to_numpy()
    tied = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
    rows = np.flatnonzero(np.r_[tied, False] | np.r_[False, tied])  # only these can be equal
    candidates = pl.DataFrame({"user": user[rows], "item": item[rows], "time": time[rows]})
    repeated = np.zeros(len(user), bool)
    repeated[rows] = ~candidates.select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
    return repeated


def k_core(user: Int[np.ndarray, " N"], item: Int[np.ndarray, " N"], k: int) -> Bool[np.ndarray, " N"]:
    """Which interactions remain when users and items with fewer than k are removed until none is left to remove."""
    keep = np.ones(len(user), bool)
    if k <= 1:
        return keep
    while True:
        few_users = np.bincount(user[keep], minlength=user.max() + 1) < k
        few_items = np.bincount(item[keep], minlength=item.max() + 1) < k
        now = keep & ~few_users[user] & ~few_items[item]
        if now.sum() == keep.sum():
            return keep
        keep = now
        if not keep.any():
            return keep


def order(
    user: Int[np.ndarray, " N"],
    time: Int[np.ndarray, " N"] | None,
    rng: np.random.Generator | None,
    part: Int[np.ndarray, " N"] | None = None,
) -> Int[np.ndarray, " N"]:
    """The permutation that sorts by (user, time, place in the file), or equal times in a random order with `rng`.

    `part`: of a split that came with the data; equal times are ordered by it first.
    Without times the file's order stands, whatever `rng`.  Users are grouped by a counting sort: linear.
    """
    rows = np.arange(len(user), dtype=np.int64)
    if time is not None:
        keys = pl.DataFrame({"time": time, "row": rows})
        ties = [] if part is None else [pl.lit(pl.Series("part", part))]
        ties += [] if rng is None else [pl.lit(pl.Series("luck", rng.random(len(user))))]
        rows = keys.sort("time", *ties, maintain_order=True)["row"].to_numpy()
    one_each = sparse.csr_array((rows, user[rows], np.arange(len(user) + 1)), shape=(len(user), int(user.max()) + 1))
    return one_each.tocsc().data


def leave_one_out(start: Int[np.ndarray, " U1"]) -> tuple[Int[np.ndarray, " U"], Int[np.ndarray, " U"]]:
    """(train_end, valid_end): a user's last interaction is the test target, the one before it validation's.

    A user with fewer than three interactions is for training only.
    """
    end = start[1:]
    long = np.diff(start) >= 3
    return np.where(long, end - 2, end), np.where(long, end - 1, end)


def global_time(
    start: Int[np.ndarray, " U1"], time: Int[np.ndarray, " N"], valid_share: float, test_share: float
) -> tuple[Int[np.ndarray, " U"], Int[np.ndarray, " U"]]:
    """(train_end, valid_end): everything before one instant trains, for all users alike.

    The target of a window is the user's first interaction in it.
    """
    cuts = np.quantile(time, [1 - valid_share - test_share, 1 - test_share], method="lower")
    train_end, valid_end = (
        start[:-1] + np.add.reduceat(np.r_[time < cut, 0], start[:-1]) * (np.diff(start) > 0) for cut in cuts
    )
    return train_end, valid_end


def draw_negatives(
    start: Int[np.ndarray, " U1"], items: Int[np.ndarray, " N"], n_items: int, n: int, rng: np.random.Generator
) -> Int[np.ndarray, "U n"]:
    """n distinct uniform items for each user, none of which the user ever has.

    A user who has had so many distinct items that fewer than n are left gets n times -1; nobody else's draw changes.
    """
    n_users = len(start) - 1
    drawn = np.empty((n_users, n), np.int32)
    rows = max(1, 4_000_000 // n)  # users in a block: memory stays bounded
    lows = range(0, n_users, rows)

    def fill(low: int, own: np.random.Generator) -> None:
        high = min(low + rows, n_users)
        user = np.repeat(np.arange(high - low), np.diff(start[low : high + 1]))
        owned = np.sort(user * n_items + items[start[low] : start[high]])
        block = own.integers(0, n_items, (high - low, n), dtype=np.int32)
        redo = np.arange(high - low)
        if (np.diff(start[low : high + 1]) > n_items - n).any():  # plays are no fewer than distinct items
            has_few_left = np.bincount(np.unique(owned) // n_items, minlength=high - low) > n_items - n
            block[has_few_left] = -1
            redo = np.flatnonzero(~has_few_left)
        while len(redo):
            fresh = np.sort(block[redo], axis=1)
            keys = fresh + redo[:, None] * np.int64(n_items)
            place = np.minimum(np.searchsorted(owned, keys), len(owned) - 1)
            bad = owned[place] == keys
            bad[:, 1:] |= fresh[:, 1:] == fresh[:, :-1]
            fresh[bad] = own.integers(0, n_items, int(bad.sum()), dtype=np.int32)
            block[redo] = fresh
            redo = redo[bad.any(1)]
        drawn[low:high] = block

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy works outside the GIL; a block's draw is its own
        list(pool.map(fill, lows, rng.spawn(len(lows))))
    return drawn
