"""Exact ranks of a split, by any model, on any number of processes.

Users are ranked in fixed blocks of BLOCK (sorted by history length), whatever the batch size and the
number of processes: a block's shape and content are the same everywhere, so its ranks are too.

Shapes: B users in a block, I items, n items in a chunk, M sampled negatives, U users.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from distrec.data import batches
from distrec.data.prepared import Prepared, Split
from distrec.knobs import Score
from distrec.models.build import Scorer
from distrec.runtime import Ranks, Stopped

BLOCK = 512
CHUNK = {"cpu": 1024, "cuda": 262_144}  # items scored at once; on a CPU 512 × 1024 scores stay in the cores' caches


@dataclass(frozen=True)
class Ranking:
    """The rank of each evaluated user's target, 1 is best; `sampled` is its rank among 1 + M items.

    Ties get the expected rank (half of the equal ones stand before); beyond what a generative model
    lists the rank is inf.  `others`: ranks by each of its ways of decoding; of free decoding also among all that came
    out, items or not (free_ids), and the share of them that is no item (free_invalid).
    """

    user: np.ndarray
    target: np.ndarray
    rank: np.ndarray
    sampled: np.ndarray | None
    others: dict[str, np.ndarray]


@torch.no_grad()
def rank_split(
    model: Any,
    data: Prepared,
    split: Split,
    config: Score,
    ranks: Ranks,
    device: torch.device,
    thorough: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Ranking:
    """Ranks of every user of the split; the same on every process.  `thorough`: by every way of decoding as well.

    Raises: ValueError when the split has no target, or a score is not finite; Stopped, on all ranks, when stop() on any.
    """
    samples = batches.evaluation(data, split, model.max_len)
    if not len(samples):
        raise ValueError(f"{data.folder}: the {split} split has no target")
    model.eval()
    order = np.lexsort((samples.user, samples.lengths()))
    blocks = [order[low : low + BLOCK] for low in range(0, len(order), BLOCK)]
    mine = blocks[ranks.rank :: ranks.size]
    spare = -(-len(blocks) // ranks.size) - len(mine)  # all run as often: ZeRO-3 gathers weights as they go
    together = max(1, config.batch_users // BLOCK)
    columns: dict[str, list[np.ndarray]] = {}
    bar = tqdm(
        total=len(mine) + spare, desc=f"rank {split}", unit="block", disable=not ranks.is_main, leave=False, delay=2
    )
    work = mine + blocks[:1] * spare
    asked = False
    for low in range(0, len(work), together):
        asked = asked or stop()
        if asked:
            break
        group = work[low : low + together]
        for found in _rank_blocks(model, data, samples, group, config, device, thorough):
            for name, values in found.items():
                columns.setdefault(name, []).append(values.double().cpu().numpy())
        bar.update(len(group))
    bar.close()
    own = {name: values[: len(mine)] for name, values in columns.items()}
    answers = ranks.gather((asked, mine, own))
    if any(asked for asked, _, _ in answers):
        raise Stopped
    gathered = [(mine, own) for _, mine, own in answers if mine]
    back = np.argsort(np.concatenate([block for own, _ in gathered for block in own]))
    whole = {
        name: np.concatenate([values for _, own in gathered for values in own[name]])[back] for name in gathered[0][1]
    }
    return Ranking(
        samples.user, data.item[samples.end - 1], whole.pop("rank"), whole.pop("sampled", None), others=whole
    )


def _rank_blocks(
    model: Any,
    data: Prepared,
    samples: batches.Samples,
    group: list[np.ndarray],
    config: Score,
    device: torch.device,
    thorough: bool,
) -> Iterator[dict[str, Tensor]]:
    loaded = [batches.collate(data, samples, block).to(device) for block in group]
    masked = masks_history(config, model)
    masks = [_history(data, samples, block, device) if masked else None for block in group]
    if not hasattr(model, "scorer"):
        for block, batch, mask in zip(group, loaded, masks, strict=True):
            result = _rank_listed(model, batch, mask, data.n_items, thorough)
            if thorough and data.negatives is not None and hasattr(model, "likelihood"):
                result["sampled"] = _rank_sampled(partial(model.likelihood, batch), batch, data, samples.user[block])
            yield result
        return
    scorers = [model.scorer(batch) for batch in loaded]
    targets = [batch.targets[:, -1] for batch in loaded]
    found = exact_ranks(scorers, targets, data.n_items, masks)
    for block, scorer, batch, rank in zip(group, scorers, loaded, found, strict=True):
        result = {"rank": rank}
        if data.negatives is not None:
            result["sampled"] = _rank_sampled(partial(_scores_of, scorer), batch, data, samples.user[block])
        yield result


def masks_history(config: Score, model: Any) -> bool:
    """Whether a user's history is left out: asked for, or usual for models of this kind."""
    return hasattr(model, "scorer") if config.mask_history is None else config.mask_history


def _rank_listed(
    model: Any, batch: batches.Batch, mask: tuple[Tensor, Tensor] | None, n_items: int, thorough: bool
) -> dict[str, Tensor]:
    """Where the target stands in what a generative model lists, by its own and, if `thorough`, each way of decoding."""
    result = {}
    thorough = thorough and hasattr(model, "listings")
    listings = model.listings(batch) if thorough else {"": model.rank(batch, model.beams)}
    for name, listed in listings.items():
        no_item = left_out = listed < 0
        if mask is not None:
            numbers = torch.arange(len(listed), device=listed.device)[:, None] * n_items + listed
            left_out = no_item | torch.isin(numbers, mask[0] * n_items + mask[1])
        hit = listed == batch.targets[:, -1:]
        place = _place(hit, left_out)
        result.setdefault("rank", place)
        if thorough:
            result[name] = place
        if name == "free":
            result |= {"free_ids": _place(hit, left_out & ~no_item), "free_invalid": no_item.double().mean(1)}
    return result


def _place(hit: Tensor, left_out: Tensor) -> Tensor:
    """The place of the hit among those not left out, from 1; inf where there is none."""
    place = (~left_out).double().cumsum(1)
    return torch.where(hit, place, torch.inf).amin(1)


def exact_ranks(
    scorers: list[Scorer], targets: list[Tensor], n_items: int, masks: list[tuple[Tensor, Tensor] | None]
) -> list[Tensor]:
    """Expected rank of each target: 1 + #(higher) + ½ #(equal others), over all items that are not masked.

    One pass: with s_i the scores and s the target's, Σ sign(s_i - s) = #higher - #lower, so that
    rank = ½ (1 + I + Σ sign).  Chunks of items outside, blocks of users inside: a chunk of the table stays in
    the cache for all users, and memory is one chunk of one block.  A target's own score is read from the chunk
    it stands in: should it differ there in its last bit from the one gathered beforehand, that block is
    counted again with it.

    Raises: ValueError when any score is not finite.
    """
    own = [scorer(target).diagonal().clone() for scorer, target in zip(scorers, targets, strict=True)]
    counted = _count(scorers, own, targets, n_items, masks)
    moved = [i for i, (_, seen) in enumerate(counted) if not torch.equal(seen, own[i])]
    if moved:
        again = _count(
            [scorers[i] for i in moved],
            [counted[i][1] for i in moved],
            [targets[i] for i in moved],
            n_items,
            [masks[i] for i in moved],
        )
        for i, result in zip(moved, again, strict=True):
            counted[i] = result
    return [rank for rank, _ in counted]


def _count(
    scorers: list[Scorer],
    own: list[Tensor],
    targets: list[Tensor],
    n_items: int,
    masks: list[tuple[Tensor, Tensor] | None],
) -> list[tuple[Tensor, Tensor]]:
    """(rank, the target's score as it stands in its chunk) of each block, counting against `own`."""
    width = CHUNK[own[0].device.type]
    homes = [_by_chunk(torch.arange(len(target), device=target.device), target, n_items, width) for target in targets]
    masked = [_by_chunk(*mask, n_items, width) if mask else None for mask in masks]
    signs = [torch.zeros(len(target), dtype=torch.float64, device=target.device) for target in targets]
    seen = [score.clone() for score in own]
    checksum = torch.zeros(len(own), device=own[0].device)
    for chunk, low in enumerate(range(0, n_items, width)):
        items = slice(low, min(low + width, n_items))
        for i, scorer in enumerate(scorers):
            scores = scorer(items)
            checksum[i] += scores.sum()
            if len(homes[i][chunk][0]):
                seen[i][homes[i][chunk][0]] = scores[homes[i][chunk]]
            if (mask := masked[i]) and len(mask[chunk][0]):
                scores[mask[chunk]] = -torch.inf
            signs[i] += scores.sub_(own[i][:, None]).sign_().sum(1)
    if not torch.isfinite(checksum).all():  # a NaN would count as a tie
        raise ValueError("the model gives scores that are not finite; nothing can be ranked by them")
    return [((1 + n_items + total) / 2, score) for total, score in zip(signs, seen, strict=True)]


def _by_chunk(rows: Tensor, items: Tensor, n_items: int, width: int) -> list[tuple[Tensor, Tensor]]:
    """(row, column inside the chunk) of the given places, chunk by chunk."""
    order = items.argsort()
    rows, items = rows[order], items[order]
    edges = torch.searchsorted(items, torch.arange(0, n_items + width, width, device=items.device)).tolist()
    return [(rows[a:b], items[a:b] - chunk * width) for chunk, (a, b) in enumerate(pairwise(edges))]


def _history(
    data: Prepared, samples: batches.Samples, block: np.ndarray, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(row, item) of everything a user has before the target, the whole history and never the target itself."""
    first, target = data.start[samples.user[block]], samples.end[block] - 1
    lengths = target - first
    row = np.repeat(np.arange(len(block)), lengths)
    item = data.item[np.arange(len(row)) + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)]
    keep = item != data.item[target][row]
    return torch.from_numpy(row[keep]).to(device), torch.from_numpy(item[keep].astype(np.int64)).to(device)


def _scores_of(scorer: Scorer, items: Tensor) -> Tensor:
    """Scores of other items for each user, from columns of items."""
    columns, place = items.unique(return_inverse=True)
    return scorer(columns).gather(1, place)


def _rank_sampled(
    scores_of: Callable[[Tensor], Tensor], batch: batches.Batch, data: Prepared, users: np.ndarray
) -> Tensor:
    """Expected rank of each target among itself and the user's sampled negatives."""
    assert data.negatives is not None
    target = batch.targets[:, -1:]
    negatives = torch.from_numpy(data.negatives[users].astype(np.int64)).to(target.device)
    scores = scores_of(torch.cat([target, negatives], 1))
    own, others = scores[:, :1], scores[:, 1:]
    return 1 + (others > own).sum(1).double() + (others == own).sum(1).double() / 2
