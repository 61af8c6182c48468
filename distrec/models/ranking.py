"""Models that score any item, and the best items by such scores.

Shapes: B users in a batch, D channels, n items in a chunk, K items wanted, S places.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from distrec.data.batches import Batch

CHUNK = 65_536  # items scored at once
PIECE = 1024  # rows of a table worked out at once; chunks are made of whole ones

Places = tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]
"""(row, item) of some scores, on the host: sizes are known there, and a GPU is never asked for them."""

Scorer = Callable[[slice | Tensor], Float[Tensor, "B n"]]
"""Scores of some items (a range of ids, or ids) for the users of one batch: a column an item, in a tensor of its own
that the caller may overwrite."""


class TableModel(nn.Module, ABC):
    """Scores by the inner product of a user's state and an item's vector."""

    n_items: int

    @abstractmethod
    def user_states(self, batch: Batch) -> Float[Tensor, "B D"]: ...

    @abstractmethod
    def item_vectors(self, items: slice | Int[Tensor, " n"]) -> Float[Tensor, "n D"]:
        """The table's rows in float32; of a range that begins with a piece, the same bits wherever it ends."""

    def scorer(self, batch: Batch) -> Scorer:
        return by_table(self.user_states(batch), self.item_vectors(slice(0, self.n_items)))

    def rank(self, batch: Batch, k: int) -> Int[Tensor, "B K"]:
        return top_items(self.scorer(batch), slice(0, self.n_items), k)[0]


class Reader(TableModel):
    """Reads histories place by place; a user's state is the last place's."""

    @property
    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """What states pass through one after the other, B × T × D each time."""

    @abstractmethod
    def read(self, batch: Batch) -> Float[Tensor, "B T D"]:
        """The state of every place, as scores take it."""

    def user_states(self, batch: Batch) -> Float[Tensor, "B D"]:
        return self.read(batch)[:, -1].float()


def by_table(states: Float[Tensor, "B D"], rows: Float[Tensor, "n D"], first: int = 0) -> Scorer:
    """Scores of the items `first` … that the rows stand for."""

    def of(items: slice | Tensor) -> Tensor:
        is_range = isinstance(items, slice)
        return states @ rows[slice(items.start - first, items.stop - first) if is_range else items - first].T

    return of


def top_items(
    scorer: Scorer, items: slice, k: int, masked: Places | None = None
) -> tuple[Int[Tensor, "B K"], Float[Tensor, "B K"]]:
    """(the k items of a range with the highest scores, best first, of equal ones the lower id; their scores).

    `masked`: (user, item) that get -inf.
    """
    best = scorer(slice(items.start, items.start))  # none yet
    ids = torch.empty(best.shape, dtype=torch.int64, device=best.device)
    masks = by_chunk([masked], items, CHUNK, best.device)[0] if masked else None
    for nth, chunk in enumerate(chunks(items, CHUNK)):
        scores = scorer(chunk)
        if masks:
            scores[masks[nth]] = -torch.inf
        best = torch.cat([best, scores], 1)
        ids = torch.cat([ids, torch.arange(chunk.start, chunk.stop, device=ids.device).expand_as(scores)], 1)
        order = best.argsort(dim=1, descending=True, stable=True)[:, :k]  # earlier columns have lower ids
        best, ids = best.gather(1, order), ids.gather(1, order)
    return ids, best


def chunks(items: slice, width: int) -> Iterator[slice]:
    return (slice(low, min(low + width, items.stop)) for low in range(items.start, items.stop, width))


def by_chunk(
    places: Sequence[Places], within: slice, width: int, device: torch.device
) -> list[list[tuple[Tensor, Tensor]]]:
    """(row, column inside the chunk) of each group of places, for each chunk of a range; those outside it are left out."""
    lows = [*range(within.start, within.stop, width), within.stop]
    parts, edges = [], []
    for rows, items in places:
        order = items.argsort()
        edge = np.searchsorted(items[order], lows)
        order = order[edge[0] : edge[-1]]
        parts += [rows[order], (items[order] - within.start) % width]
        edges.append((edge - edge[0]).tolist())
    tensors = iter(to_device(device, *parts))
    return [
        [(rows[a:b], columns[a:b]) for a, b in pairwise(edge)]
        for edge, (rows, columns) in zip(edges, zip(tensors, tensors, strict=True), strict=True)
    ]


def to_device(device: torch.device, *arrays: Int[np.ndarray, " _"]) -> list[Int[Tensor, " _"]]:
    """Whole numbers of the host as tensors on a device.  To a GPU they travel as one pinned tensor; the host does not wait."""
    tensors = [torch.from_numpy(array.astype(np.int64, copy=False)) for array in arrays]
    if device.type != "cuda" or not tensors:
        return [tensor.to(device) for tensor in tensors]
    sent = torch.cat(tensors).pin_memory().to(device, non_blocking=True)
    return list(sent.split([len(tensor) for tensor in tensors]))


def is_among(values: Int[Tensor, " *B"], ascending: Int[Tensor, " S"]) -> Bool[Tensor, " *B"]:
    """Whether each value is one of some ascending numbers: torch.isin, which makes the host wait for a GPU, without a wait."""
    if not len(ascending):
        return torch.zeros_like(values, dtype=torch.bool)
    return ascending[torch.searchsorted(ascending, values).clamp(max=len(ascending) - 1)] == values
