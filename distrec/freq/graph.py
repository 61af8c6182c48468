"""Graphs of items: co-occurrence, sessions, nearest neighbours, and their normalised adjacency (polynomial.py filters on it).

A = D^-½ W D^-½, L = I − A.  An item without an edge keeps its values under L⁰ and has none under L (Deviation: I − A
would call it high-frequency and shrink it).  W and A are symmetric and hold their edges in 8 bytes: int32 and float32.

Shapes: I items, E edges, D channels, N interactions, U users.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Integer, Real
from scipy.sparse import csr_array
from torch import Tensor

_BLOCK = 1 << 21  # pairs, edges or similarities held at once
_ROWS = 1024


def cooccurrence(
    item: Integer[np.ndarray, " N"],
    start: Integer[np.ndarray, " _"],
    n_items: int,
    *,
    window: int | None = None,
    weighting: Literal["binary", "count", "lag"] = "binary",
    top_k: int | None = None,
    self_loops: bool = True,
) -> csr_array:
    """W_ij = Σ_users Σ_ab w(|a−b|) over the places a of i and b of j, at most `window` apart (None: any two of a user).

    w: 1 for "count", 1/lag for "lag"; "binary" counts the users who have such a pair, so that without a window W = RᵀR.
    A place also meets itself with weight 1: the diagonal is an item's number of users (binary), else of its places plus
    what its repetitions weigh among themselves; `self_loops=False` drops it.  `top_k`: an edge stays when it is among
    the strongest of either end, the lower id first of equal ones.  `item`, `start`: training sequences, one after
    another, and where each begins and the last ends.   Source: FreLLM4Rec (binary, no window).
    Raises: ValueError for an unknown weighting, a window or top_k below 1, items or places out of range.
    """
    _check_sequences(item, start, n_items)
    if weighting not in ("binary", "count", "lag"):
        raise ValueError(f"weighting {weighting!r} is none of binary, count, lag")
    for name, value in (("window", window), ("top_k", top_k)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} is below 1: set a larger one, or None for no limit")
    item, start = item.astype(np.int32, copy=False), start.astype(np.int64, copy=False)
    if window is None and weighting != "lag":
        blocks = _any_pairs(item, start, n_items, weighting == "binary")
    else:
        blocks = _near_pairs(item, start, n_items, window or len(item), weighting)
    if not self_loops:
        blocks = ((low, _kept(block, block.indices != _rows(block.indptr) + low)) for low, block in blocks)
    if top_k is None:
        return _stacked(blocks, n_items)
    strongest = ((low, _kept(block, _is_strong(block, low, top_k))) for low, block in blocks)
    return _union(_stacked(strongest, n_items))


def sessions(start: Integer[np.ndarray, " _"], time: Real[np.ndarray, " N"], gap: float) -> Integer[np.ndarray, " _"]:
    """Where sequences begin when users' are also cut before a step in time above `gap`; empty ones vanish.

    Units: `gap` in those of `time`.   Raises: ValueError when `gap` is negative.
    """
    if not gap >= 0:
        raise ValueError(f"gap={gap} is not 0 or more: give the longest pause within a session")
    return np.union1d(start, np.flatnonzero(np.diff(time) > gap) + 1)


def neighbours(vectors: Float[Tensor, "I D"], k: int) -> csr_array:
    """W_ij = cos(v_i, v_j) when positive and j is among the k nearest to i, or i to j; no self-loops, no zero vectors.

    Raises: ValueError when k is below 1 or a vector is not finite.
    """
    if k < 1:
        raise ValueError(f"k={k} is below 1: every item needs room for a neighbour")
    if not bool(vectors.isfinite().all()):
        raise ValueError("a vector is not finite: its cosines mean nothing; mend or remove it")
    unit = vectors.detach().float()
    unit = unit / unit.norm(dim=1, keepdim=True).clamp(min=torch.finfo(unit.dtype).tiny)
    return _union(_stacked(_nearest(unit, k), len(unit)))


def normalise(W: csr_array, in_place: bool = False) -> csr_array:
    """A = D^-½ W D^-½ in float32 with W's own index arrays; a float32 W also gives its values when `in_place`.

    Its eigenvalues lie in [−1, 1], in [0, 1] for W = RᵀR; items without an edge keep an empty row.
    Raises: ValueError when W is not square, or holds a weight that is not positive and finite.
    """
    n = len(W.indptr) - 1
    if W.shape != (n, n):
        raise ValueError(f"a graph of shape {W.shape} is not square")
    if W.nnz and not 0 < W.data.min() <= W.data.max() < np.inf:
        raise ValueError(f"weights from {W.data.min()} to {W.data.max()}: all that are stored must be positive, finite")
    scale = np.zeros(n)
    for low, high in _cuts(W.indptr):
        edges = slice(W.indptr[low], W.indptr[high])
        scale[low:high] = np.bincount(_rows(W.indptr[low : high + 1]), W.data[edges], high - low)
    scale[scale > 0] **= -0.5
    values = W.data if in_place and W.data.dtype == np.float32 else W.data.astype(np.float32)
    for low, high in _cuts(W.indptr):
        edges = slice(W.indptr[low], W.indptr[high])
        values[edges] *= scale[low + _rows(W.indptr[low : high + 1])] * scale[W.indices[edges]]
    return csr_array((values, W.indices, W.indptr), shape=W.shape)


def _check_sequences(item: np.ndarray, start: np.ndarray, n_items: int) -> None:
    if not len(start) or start[0] != 0 or start[-1] != len(item) or (start[1:] < start[:-1]).any():
        raise ValueError(f"start must rise from 0 to the {len(item)} interactions")
    if len(item) and not 0 <= item.min() <= item.max() < n_items:
        raise ValueError(f"items {item.min()} to {item.max()} do not fit n_items={n_items}: ids run from 0")


def _any_pairs(item: np.ndarray, start: np.ndarray, n_items: int, is_binary: bool) -> Iterator[tuple[int, csr_array]]:
    """Blocks of rows of RᵀR."""
    R = csr_array((np.ones(len(item), np.float32), item.copy(), start.copy()), (len(start) - 1, n_items))
    R.sum_duplicates()
    if is_binary:
        R.data[:] = 1
    lengths = np.diff(R.indptr)
    work = np.bincount(R.indices, np.repeat(lengths, lengths), n_items)
    transposed = R.T.tocsr()
    for low, high in _cuts(np.r_[0, work.cumsum()]):
        block = transposed[low:high] @ R
        block.sort_indices()
        yield low, block


def _near_pairs(
    item: np.ndarray, start: np.ndarray, n_items: int, window: int, weighting: str
) -> Iterator[tuple[int, csr_array]]:
    """Blocks of rows: every place of some items, and those near it."""
    lengths = np.diff(start)
    begin, end = np.repeat(start[:-1], lengths), np.repeat(start[1:], lengths)
    place = np.arange(len(item))
    low, high = np.maximum(begin, place - window), np.minimum(end, place + window + 1)
    order = np.argsort(item, kind="stable")
    of_item = np.r_[0, np.bincount(item, minlength=n_items).cumsum()]
    pairs = np.r_[0, (high - low)[order].cumsum()]
    for first, last in _cuts(pairs[of_item]):
        mine = order[of_item[first] : of_item[last]]
        count = high[mine] - low[mine]
        ends = np.r_[0, count.cumsum()]
        near = np.arange(ends[-1]) + np.repeat(low[mine] - ends[:-1], count)
        lag = np.abs(near - np.repeat(mine, count))
        weight = 1 / np.maximum(lag, 1) if weighting == "lag" else np.ones(len(lag))
        # one row for each item of each user, in which "binary" counts nothing twice
        is_new = (np.diff(item[mine], prepend=-1) != 0) | (np.diff(begin[mine], prepend=-1) != 0)
        head = np.flatnonzero(is_new)
        near_rows = csr_array((weight, item[near], ends[np.r_[head, len(mine)]]), (len(head), n_items))
        near_rows.sum_duplicates()
        if weighting == "binary":
            near_rows.data[:] = 1
        of_row = np.searchsorted(head, of_item[first : last + 1] - of_item[first])
        sums = csr_array((np.ones(len(head)), np.arange(len(head)), of_row), (last - first, len(head)))
        block = csr_array(sums @ near_rows, dtype=np.float32)
        block.sort_indices()
        yield first, block


def _nearest(unit: Float[Tensor, "I D"], k: int) -> Iterator[tuple[int, csr_array]]:
    n, width = len(unit), _BLOCK // _ROWS
    for low in range(0, n, _ROWS):
        rows = unit[low : low + _ROWS]
        best = rows.new_zeros(len(rows), 0)
        item = torch.zeros(len(rows), 0, dtype=torch.int64, device=unit.device)
        for left in range(0, n, width):
            cosine = rows @ unit[left : left + width].T
            columns = torch.arange(left, left + cosine.shape[1], device=unit.device)
            cosine.masked_fill_(columns == torch.arange(low, low + len(rows), device=unit.device)[:, None], 0)
            found = torch.cat([best, cosine], 1)
            best, place = found.topk(min(k, found.shape[1]), dim=1)
            item = torch.cat([item, columns.expand(len(rows), -1)], 1).gather(1, place)
        there = best > 0
        ends = np.r_[0, there.sum(1).cumsum(0).numpy(force=True)]
        parts = best[there].numpy(force=True), item[there].int().numpy(force=True), ends
        block = csr_array(parts, (len(rows), n))
        block.sort_indices()
        yield low, block


def _is_strong(block: csr_array, low: int, k: int) -> np.ndarray:
    """Whether each edge is among its row's k heaviest; self-loops are, and count for none."""
    rows = _rows(block.indptr)
    is_loop = block.indices == rows + low
    order = np.lexsort((block.indices, np.negative(block.data), ~is_loop, rows))
    rank = np.empty(block.nnz, np.int64)
    rank[order] = np.arange(block.nnz) - block.indptr[rows]
    return rank < k + np.bincount(rows[is_loop], minlength=len(block.indptr) - 1)[rows]


def _kept(block: csr_array, is_kept: np.ndarray) -> csr_array:
    ends = np.r_[0, is_kept.cumsum()][block.indptr]
    return csr_array((block.data[is_kept], block.indices[is_kept], ends), block.shape)


def _union(W: csr_array) -> csr_array:
    return csr_array(W.maximum(W.T.tocsr()))


def _stacked(blocks: Iterable[tuple[int, csr_array]], n_items: int) -> csr_array:
    """The blocks of rows below one another; the arrays grow where they stand, so that no edge is held twice."""
    data, indices, ends = np.empty(0, np.float32), np.empty(0, np.int32), np.zeros(n_items + 1, np.int64)
    for low, block in blocks:
        size = len(data)
        ends[low + 1 : low + len(block.indptr)] = size + block.indptr[1:]
        for whole, part in ((data, block.data), (indices, block.indices)):
            whole.resize(size + len(part), refcheck=False)
            whole[size:] = part
    if ends[-1] < 2**31:
        ends = ends.astype(np.int32)
    return csr_array((data, indices, ends), (n_items, n_items))


def _cuts(ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """Stretches (low, high) of rows with about `_BLOCK` each of what `ends` counts."""
    places = np.searchsorted(ends, np.arange(0, ends[-1], _BLOCK))
    edges = np.unique(np.r_[0, places, len(ends) - 1]).tolist()
    return itertools.pairwise(edges)


def _rows(indptr: np.ndarray) -> np.ndarray:
    """The row of each edge."""
    return np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
