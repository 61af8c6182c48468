"""The last code of an item: a running number among the items whose other codes are all equal.

Shapes: I items, L levels.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int
from scipy.stats import poisson
from torch import Tensor


def check_space(sizes: Sequence[int]) -> None:
    """Raises: ValueError when the code space exceeds 63 bits."""
    if math.prod(sizes) >= 2**63:
        raise ValueError(
            f"{' × '.join(map(str, sizes))} codes exceed 63 bits: take fewer levels (codes.levels) or codes (codes.size)"
        )


def expected_shared(n: int, cells: float) -> float:
    """The share of n items that share all their codes with another, drawn evenly from so many cells: 1 − (1 − 1/cells)^(n−1).

    Real codes are uneven: take the product of the levels' perplexities for `cells`.
    """
    return -math.expm1((n - 1) * math.log1p(-1 / cells)) if cells > 1 else float(n > 1)


def expected_largest(n: int, cells: float) -> int:
    """The largest bucket of n such items: the least k with fewer than one cell of more, as Poisson(n / cells) has it."""
    return int(poisson.isf(min(1.0, 1 / cells), n / cells))


def pack(codes: Int[Tensor, "I L"], sizes: Sequence[int]) -> Int[Tensor, " I"]:
    """Each row of codes as one number, ordered as the rows are.

    Raises: ValueError when the code space exceeds 63 bits.
    """
    check_space(sizes)
    key = torch.zeros(len(codes), dtype=torch.int64)
    for level, size in enumerate(sizes):
        key = key * size + codes[:, level].long()
    return key


def running_digit(
    codes: Int[Tensor, "I L"], sizes: Sequence[int], space: int, taken: Int[Tensor, "M L1"] | None = None
) -> Int[Tensor, " I"]:
    """0, 1, 2 … in row order within each group of equal rows, after the digits that `taken` rows have already.

    Raises: ValueError naming the largest group when a digit would not be below `space`.
    """
    if not len(codes):
        return torch.empty(0, dtype=torch.int64)
    key = pack(codes, sizes)
    groups, group = key.unique(return_inverse=True)
    first = torch.zeros(len(groups), dtype=torch.int64)
    if taken is not None and len(taken):
        before = pack(taken[:, :-1], sizes)
        place = torch.searchsorted(groups, before).clamp(max=len(groups) - 1)
        known = groups[place] == before
        first.scatter_reduce_(0, place[known], taken[known, -1].long() + 1, "amax")
    order = group.argsort(stable=True)
    count = torch.bincount(group, minlength=len(groups))
    start = count.cumsum(0) - count
    digit = torch.empty_like(group)
    digit[order] = torch.arange(len(group)) - start[group[order]]
    digit += first[group]
    total = first + count
    if len(total) and int(total.max()) > space:
        worst = int(total.argmax())
        row = codes[int(order[start[worst]])].tolist()
        raise ValueError(
            f"bucket {tuple(row)} holds {int(total[worst]):,} items, its last code only {space}: are their texts all the "
            "same?  Take a richer data.text, more codes (codes.size) or levels (codes.levels)"
        )
    return digit
