"""How well codes are used: what tells a collapsed codebook from a good one.

Shapes: I items, L levels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from distrec.codes.collisions import pack


def use(codes: Int[Tensor, " I"], size: int) -> dict[str, Any]:
    """How one level's codes are used.   Units: entropy in bits; perplexity in codes, 2^entropy."""
    count = torch.bincount(codes.long(), minlength=size).double()
    share = count[count > 0] / count.sum()
    entropy = float(-(share * share.log2()).sum())
    return {
        "size": size,
        "used": int((count > 0).sum()),
        "entropy": entropy,
        "perplexity": 2**entropy,
        "largest": int(count.max()),
    }


def collisions(codes: Int[Tensor, "I L"], sizes: Sequence[int]) -> dict[str, Any]:
    """How many items share all their codes with another, before the last code tells them apart."""
    _, count = pack(codes, sizes).unique(return_counts=True)
    shared = count[count > 1]
    return {
        "distinct": len(count),
        "groups": len(shared),
        "items": int(shared.sum()),
        "share": float(shared.sum()) / len(codes),
        "largest": int(count.max()),
    }


def complaints(levels: Sequence[dict[str, Any]], collided: dict[str, Any], min_used: float, limit: float) -> list[str]:
    """Why codes count as collapsed; empty when they do not."""
    found = [
        f"level {i + 1} uses {level['used']} of {level['size']} codes, below {min_used:.0%}"
        for i, level in enumerate(levels)
        if level["used"] < min_used * level["size"]
    ]
    if collided["share"] > limit:
        found.append(f"{collided['share']:.1%} of the items share all their codes with another, above {limit:.0%}")
    return found
