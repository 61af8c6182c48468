"""Sequences in, tensors out; which samples stand in which step is a pure function of (seed, epoch, step).

Shapes: B users in a batch, T positions (left-padded).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from distrec.data.prepared import Prepared, Split

WINDOW = 64  # batches that are cut from one stretch of the shuffled order, sorted by length


@dataclass(frozen=True)
class Batch:
    """B histories; item ids run from 0, so a padded place is known by `is_item` alone."""

    user: Int[Tensor, " B"]
    items: Int[Tensor, "B T"]
    is_item: Bool[Tensor, "B T"]
    targets: Int[Tensor, "B T"]  # the item that follows each position
    is_target: Bool[Tensor, "B T"]  # positions whose target counts

    @cached_property
    def place(self) -> Int[Tensor, " N"]:
        """row · T + position of each target that counts, in that order; a GPU gets it with the batch (`to`)."""
        return self.is_target.flatten().nonzero()[:, 0]

    def owned(self) -> Int[Tensor, "N S"]:
        """The items in the row of each target that counts, as input or as a target that counts; -1 where there is none."""
        items = self.items.masked_fill(~self.is_item, -1), self.targets.masked_fill(~self.is_target, -1)
        return torch.cat(items, 1)[self.place // self.items.shape[1]]

    def at(self, place: Int[Tensor, " N"]) -> "Batch":
        """The same batch, whose targets are known to count at these places: nobody has to look for them."""
        self.__dict__["place"] = place
        return self

    def rows(self, index: slice | Tensor) -> "Batch":
        """The batch of some of its users."""
        return Batch(self.user[index], *(part[index] for part in self._planes()))

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device.  To a GPU it travels as one pinned tensor, and the host does not wait for it."""
        if device.type != "cuda" or self.items.is_cuda:
            return Batch(self.user.to(device), *(part.to(device) for part in self._planes()))
        shape = self.items.shape
        parts = [
            self.user,
            self.items.masked_fill(~self.is_item, -1).flatten(),
            self.targets.masked_fill(~self.is_target, -1).flatten(),
            self.place,
        ]
        sent = torch.cat(parts).pin_memory().to(device, non_blocking=True)
        user, items, targets, place = sent.split([part.numel() for part in parts])
        items, targets = items.view(shape), targets.view(shape)
        return Batch(user, items.clamp(min=0), items >= 0, targets.clamp(min=0), targets >= 0).at(place)

    def _planes(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.items, self.is_item, self.targets, self.is_target


@dataclass(frozen=True)
class Samples:
    """Sample n reads the places begin[n] … end[n]-1 of the flat items; the last of them is its last target.

    `last_only`: the loss reads the last position alone (one sample a prefix), else every position.  Such a sample counts
    as a whole window where positions are counted, so that every step has as many of them whatever their lengths.
    """

    user: Int[np.ndarray, " N"]
    begin: Int[np.ndarray, " N"]
    end: Int[np.ndarray, " N"]
    last_only: bool
    max_len: int

    def __len__(self) -> int:
        return len(self.user)

    def lengths(self, rows: Any = slice(None)) -> Int[np.ndarray, " n"]:
        return self.end[rows] - self.begin[rows] - 1

    def costs(self, rows: Any = slice(None)) -> Int[np.ndarray, " n"]:
        """Positions that each row counts for."""
        lengths = self.lengths(rows)
        return np.full_like(lengths, self.max_len) if self.last_only else lengths

    def n_targets(self, rows: np.ndarray) -> int:
        return len(rows) if self.last_only else int(self.lengths(rows).sum())

    def items_read(self, data: Prepared) -> Int[np.ndarray, " I"]:
        """How often each item stands at a place that some sample reads."""
        edge = np.zeros(len(data.item) + 1, np.int64)
        np.add.at(edge, self.begin, 1)
        np.add.at(edge, self.end, -1)
        return np.bincount(data.item[edge[:-1].cumsum() > 0], minlength=data.n_items)


def training(data: Prepared, kind: Literal["sequences", "prefixes"], max_len: int) -> Samples:
    """Every training sample: a user's last max_len + 1 training items, or each prefix with its next item.

    Raises: ValueError when no user has two training interactions.
    """
    first, last = data.start[:-1], data.train_end
    users = learners(data)
    if kind == "prefixes":
        per_user = (last - first - 1)[users]
        of_user = np.repeat(users, per_user)
        nth = np.arange(per_user.sum()) - np.repeat(np.cumsum(per_user) - per_user, per_user)
        users, ends = of_user, first[of_user] + nth + 2
    else:
        ends = last[users]
    return Samples(users, np.maximum(first[users], ends - max_len - 1), ends, kind == "prefixes", max_len)


def learners(data: Prepared) -> Int[np.ndarray, " n"]:
    """The users that something can be learnt from.   Raises: ValueError when there is none."""
    users = np.flatnonzero(data.train_end - data.start[:-1] >= 2)
    if not len(users):
        raise ValueError(f"{data.folder}: no user has two training interactions; there is nothing to learn from")
    return users


def evaluation(data: Prepared, split: Split, max_len: int) -> Samples:
    """The target of each user of a split, after the last max_len items of everything before it."""
    users, places = data.targets(split)
    return Samples(users, np.maximum(data.start[users], places - max_len), places + 1, True, max_len)


def collate(data: Prepared, samples: Samples, rows: np.ndarray, weightless: int = 0) -> Batch:
    """The batch of these rows, left-padded to its longest; the last `weightless` rows count no target."""
    begin, end = samples.begin[rows], samples.end[rows]
    longest = max(1, int((end - begin).max()) - 1)
    place = end[:, None] - 1 + np.arange(-longest, 0)  # the item at each position; its target is one place on
    is_item = place >= begin[:, None]
    place = np.where(is_item, place, 0)
    is_target = is_item.copy()
    if samples.last_only:
        is_target[:, :-1] = False
        is_target[:, -1] = True  # a user without history still has a target
    if weightless:
        is_target[-weightless:] = False
    following = np.where(is_target, end[:, None] - np.arange(longest, 0, -1), 0)
    return Batch(
        user=torch.from_numpy(samples.user[rows]),
        items=torch.from_numpy(np.where(is_item, data.item[place], 0).astype(np.int64)),
        is_item=torch.from_numpy(is_item),
        targets=torch.from_numpy(np.where(is_target, data.item[following], 0).astype(np.int64)),
        is_target=torch.from_numpy(is_target),
    )


def steps(samples: Samples, batch_tokens: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The rows of each optimiser step of an epoch, for all processes together; every row in exactly one.

    Rows are shuffled, sorted by length inside stretches of some 64 batches, cut so that no batch has more
    than batch_tokens positions with its padding (one row at least), and the batches shuffled again.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(samples))
    lengths = samples.lengths(order)
    stretch = np.cumsum(samples.costs(order), dtype=np.int64) // (batch_tokens * WINDOW)
    order = order[np.lexsort((lengths, stretch))]
    batches = [order[low:high] for low, high in _cut(samples.costs(order), batch_tokens)]
    return [batches[i] for i in rng.permutation(len(batches))]


def _cut(lengths: np.ndarray, budget: int) -> Iterator[tuple[int, int]]:
    """Consecutive pieces with longest × rows ≤ budget; a loop over batches, not rows."""
    low, n = 0, len(lengths)
    while low < n:
        most = min(n, low + max(1, budget // max(1, int(lengths[low]))))
        cost = np.maximum.accumulate(np.maximum(lengths[low:most], 1)) * np.arange(1, most - low + 1)
        high = low + max(1, int(np.searchsorted(cost, budget, side="right")))
        yield low, high
        low = high


def micro_batches(
    data: Prepared, samples: Samples, rows: np.ndarray, micro_tokens: int, rank: int, size: int
) -> Sequence[Batch]:
    """This rank's share of a step, in equally many pieces on every rank, each within micro_tokens positions.

    A rank with nothing left gets a row that counts no target, so that all ranks run as often.
    """
    longest = max(1, int(samples.costs(rows).max()))
    per_piece = max(1, micro_tokens // longest)
    n_pieces = -(-len(rows) // (per_piece * size))
    own = [rows[rank::size][piece::n_pieces] for piece in range(n_pieces)]
    return [collate(data, samples, piece) if len(piece) else collate(data, samples, rows[:1], 1) for piece in own]


def raw_users(data: Prepared, users: np.ndarray) -> list[str]:
    """The raw ids of some users, for messages."""
    return data.users.data.column("raw").take(users).to_pylist()
