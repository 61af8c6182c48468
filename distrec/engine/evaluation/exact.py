"""Where a target stands among all items, exactly, from scores that are worked out chunk by chunk.

Shapes: B users in a block, I items, n items in a chunk, C chunks, W wanted items a user.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from distrec.models.ranking import Places, Scorer, by_chunk, chunks, to_device
from distrec.runtime import Ranks

CHUNK = {"cpu": 1024, "cuda": 262_144}  # items scored at once; on a CPU 512 × 1024 scores stay in the cores' caches
_WEIGHT = {"cpu": 2**12, "cuda": 2**20}  # more than there are items in a chunk; its square has the 24 bits of a float32


def exact_standing(
    scorers: list[Scorer],
    wanted: list[Int[np.ndarray, "_ _"]],
    masks: list[Places | None],
    n_items: int,
    items: slice,
    ranks: Ranks,
    device: torch.device,
) -> list[tuple[Tensor, Tensor]]:
    """For each block: how many items have a higher score than each target, and how many others have its very score, over
    all items that are not masked (2 × B, whole numbers); and the scores of the `wanted` items, masked or not, the first of
    which is the target.

    Chunks of items outside, blocks of users inside: a chunk of the table stays in the cache for all users, and memory is
    one chunk of one block.  A score is the one that stands in its item's chunk, on whatever process: should the target's
    differ there in its last bit from the one that was worked out beforehand, that block is counted again with it.  The
    host waits for the device once, for all blocks.

    `wanted`, `masks`: on the host; `masks`: the places that are left out.  `items`: the range that this process counts
    over; `ranks`: those whose ranges make up all items.  `device`: where the scores are; the results stay there.

    Raises: ValueError, on all of these, when any score is not finite.
    """
    own = [_beforehand(scorer, each[:, 0], items, device) for scorer, each in zip(scorers, wanted, strict=True)]
    ranks.sum_(*own)
    counted, moved = _count(scorers, own, wanted, masks, n_items, items, ranks)
    if moved:
        again, _ = _count(
            [scorers[i] for i in moved],
            [counted[i][1][:, 0] for i in moved],
            [wanted[i] for i in moved],
            [masks[i] for i in moved],
            n_items,
            items,
            ranks,
        )
        for i, result in zip(moved, again, strict=True):
            counted[i] = result
    return counted


def _beforehand(
    scorer: Scorer, target: Int[np.ndarray, " B"], items: slice, device: torch.device
) -> Float[Tensor, " B"]:
    """The targets' scores, 0 where another process counts over the target."""
    here = (target >= items.start) & (target < items.stop)
    if not here.any():
        return torch.zeros(len(target), device=device)
    places, is_here = to_device(device, np.where(here, target, items.start), here.astype(np.int64))
    return scorer(places).diagonal().where(is_here > 0, 0)


def _count(
    scorers: list[Scorer],
    own: list[Tensor],
    wanted: list[Int[np.ndarray, "_ _"]],
    masks: list[Places | None],
    n_items: int,
    items: slice,
    ranks: Ranks,
) -> tuple[list[tuple[Tensor, Tensor]], list[int]]:
    """((standing against `own`, the scores of the wanted as they stand in their chunks) of each block, the blocks in which
    a target's score differs from `own`)."""
    device = own[0].device
    width = CHUNK[device.type]
    homes = by_chunk([(np.arange(each.size), each.ravel()) for each in wanted], items, width, device)
    masked = iter(by_chunk([mask for mask in masks if mask], items, width, device))
    hidden = [next(masked) if mask else None for mask in masks]
    n_chunks = len(range(items.start, items.stop, width))
    weighed = [torch.zeros(n_chunks, len(score), dtype=torch.float64, device=device) for score in own]
    found = [torch.zeros(each.shape, dtype=score.dtype, device=device) for each, score in zip(wanted, own, strict=True)]
    checksum = torch.zeros(len(own), device=device)
    for nth, chunk in enumerate(chunks(items, width)):
        for i, scorer in enumerate(scorers):
            scores = scorer(chunk)
            checksum[i] += scores.sum()
            place, column = homes[i][nth]
            if len(place):
                found[i].view(-1)[place] = scores[place // found[i].shape[1], column]
            if (mask := hidden[i]) and len(mask[nth][0]):
                scores[mask[nth]] = -torch.inf
            weighed[i][nth] = _weighed(scores, own[i][:, None])
    counts = [_unweighed(each, _WEIGHT[device.type]) for each in weighed]
    ranks.sum_(*counts, *found, checksum)
    differs = torch.stack([(scores[:, 0] != score).any() for scores, score in zip(found, own, strict=True)])
    is_finite, *is_moved = torch.cat([checksum.isfinite().all()[None], differs]).tolist()
    if not is_finite:  # a NaN would count as a tie
        raise ValueError("the model gives scores that are not finite; nothing can be ranked by them")
    counted = [
        (torch.stack([high, n_items - 1 - high - low]), scores)
        for (high, low), scores in zip(counts, found, strict=True)
    ]
    return counted, [i for i, moved in enumerate(is_moved) if moved]


def _weighed(scores: Float[Tensor, "B n"], own: Float[Tensor, "B 1"]) -> Float[Tensor, " B"]:
    """_WEIGHT × how many scores are higher than one's own, less how many are lower; the scores are overwritten.

    On a CPU, where comparisons and signs are slow: of the differences, scaled until the smallest that there is reaches the
    upper bound, each is clamped to -1, 0 or _WEIGHT, times a power of two, so that one sum of few digits says both.
    """
    weight = _WEIGHT[scores.device.type]
    if scores.device.type != "cpu":
        higher, as_high = (scores > own).sum(1), (scores >= own).sum(1)
        return (weight * higher + as_high - scores.shape[1]).double()
    kind = torch.finfo(scores.dtype)
    scale = math.ldexp(1, math.frexp(kind.max)[1] - 1)  # the highest power of two
    highest = kind.smallest_normal * kind.eps * scale
    scores.sub_(own).mul_(scale).clamp_(-highest / weight, highest)
    return scores.sum(1).double() * (weight / highest)


def _unweighed(weighed: Float[Tensor, "C B"], weight: int) -> Float[Tensor, "2 B"]:
    """(how many scores are higher, how many are lower) in all chunks together."""
    higher = (weighed / weight).ceil()
    return torch.stack([higher.sum(0), (weight * higher - weighed).sum(0)])
