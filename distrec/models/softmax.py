"""Cross-entropy over a catalogue, in pieces: the logits of a step are never held at once.

Shapes: N targets, D channels, I items, M negatives, S items that a row must not be pushed away from.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def full(
    states: Float[Tensor, "N D"], table: Float[Tensor, "I D"], targets: Int[Tensor, " N"], mib: int
) -> Float[Tensor, ""]:
    """Σ −log softmax(states · tableᵀ)[target], in nats.   `mib`: the most that logits take at once; they are worked
    out again for the gradient."""
    rows = max(1, mib * 2**20 // (4 * len(table)))
    if len(states) <= rows:
        return F.cross_entropy(states @ table.T, targets, reduction="sum")

    def part(own: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(own @ table.T, wanted, reduction="sum")

    pieces = zip(states.split(rows), targets.split(rows), strict=True)
    losses = [checkpoint(part, own, wanted, use_reentrant=False, preserve_rng_state=False) for own, wanted in pieces]
    return torch.stack([loss for loss in losses if isinstance(loss, Tensor)]).sum()


def sampled(
    states: Float[Tensor, "N D"],
    positive: Float[Tensor, "N D"],
    targets: Int[Tensor, " N"],
    owned: Int[Tensor, "N S"],
    negatives: Float[Tensor, "M D"],
    drawn: Int[Tensor, " M"],
    n_items: int,
    corrected: bool,
) -> Float[Tensor, ""]:
    """Σ −log of the target's share among itself and uniform negatives shared by all rows.

    `corrected`: a negative stands for (I − 1) / (negatives that count) items, so that the loss estimates the full
    softmax's.  A negative that is the row's target, or one of the row's own items (−1: none), does not count.

    Source: Jean et al. 2015 (importance-sampled softmax).
    """
    collides: Bool[Tensor, "N M"] = (drawn == targets[:, None]) | _among(drawn, owned)
    logits = (states @ negatives.T).masked_fill(collides, -torch.inf)
    if corrected:
        counts = (~collides).sum(1, keepdim=True).clamp(min=1)
        logits = logits + (math.log(max(1, n_items - 1)) - counts.log())
    own = (states * positive).sum(1, keepdim=True)
    return (torch.cat([own, logits], 1).logsumexp(1) - own[:, 0]).sum()


def _among(drawn: Int[Tensor, " M"], owned: Int[Tensor, "N S"]) -> Bool[Tensor, "N M"]:
    """Whether each row has each drawn item; memory N × M, whatever S."""
    order = drawn.argsort()
    place = torch.searchsorted(drawn[order], owned.clamp(min=0)).clamp(max=len(drawn) - 1)
    hits = (drawn[order][place] == owned) & (owned >= 0)
    first = torch.zeros(len(owned), len(drawn), device=drawn.device).scatter_add_(1, place, hits.float())
    # of equal draws the first was hit: the others have it from there
    same = torch.searchsorted(drawn[order], drawn)
    return first.gather(1, same.expand(len(owned), -1)) > 0
