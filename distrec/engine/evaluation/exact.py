"""The rank of a target among all items, exactly, from scores that are worked out chunk by chunk.

Shapes: B users in a block, I items, n items in a chunk, W wanted items a user.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from distrec.models.ranking import Places, Scorer, by_chunk, chunks, to_device
from distrec.runtime import Ranks

CHUNK = {"cpu": 1024, "cuda": 262_144}  # items scored at once; on a CPU 512 × 1024 scores stay in the cores' caches


def exact_ranks(
    scorers: list[Scorer],
    wanted: list[Int[np.ndarray, "_ _"]],
    masks: list[Places | None],
    n_items: int,
    items: slice,
    ranks: Ranks,
    device: torch.device,
) -> list[tuple[Tensor, Tensor]]:
    """For each block: the expected rank of each target, 1 + #(higher) + ½ #(equal others), over all items that are not
    masked; and the scores of the `wanted` items, masked or not, the first of which is the target.

    One pass: with s_i the scores and s the target's, Σ sign(s_i - s) = #higher - #lower, so that
    rank = ½ (1 + I + Σ sign).  Chunks of items outside, blocks of users inside: a chunk of the table stays in
    the cache for all users, and memory is one chunk of one block.  A score is the one that stands in its item's
    chunk, on whatever process: should the target's differ there in its last bit from the one that was worked out
    beforehand, that block is counted again with it.  The host waits for the device once, for all blocks.

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
    """((rank against `own`, the scores of the wanted as they stand in their chunks) of each block, the blocks in which a
    target's score differs from `own`)."""
    device = own[0].device
    width = CHUNK[device.type]
    homes = by_chunk([(np.arange(each.size), each.ravel()) for each in wanted], items, width, device)
    masked = iter(by_chunk([mask for mask in masks if mask], items, width, device))
    hidden = [next(masked) if mask else None for mask in masks]
    signs = [torch.zeros(len(score), dtype=torch.float64, device=device) for score in own]
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
            signs[i] += scores.sub_(own[i][:, None]).sign_().sum(1)
    ranks.sum_(*signs, *found, checksum)
    differs = torch.stack([(scores[:, 0] != score).any() for scores, score in zip(found, own, strict=True)])
    is_finite, *is_moved = torch.cat([checksum.isfinite().all()[None], differs]).tolist()
    if not is_finite:  # a NaN would count as a tie
        raise ValueError("the model gives scores that are not finite; nothing can be ranked by them")
    counted = [((1 + n_items + total) / 2, scores) for total, scores in zip(signs, found, strict=True)]
    return counted, [i for i, moved in enumerate(is_moved) if moved]
