"""The best items for histories, by any model.

Shapes: B users in a batch, K items wanted, W listed.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from distrec.data.batches import Batch
from distrec.engine.evaluation.shelf import Shelf
from distrec.models.ranking import top_items

_LADDER = 32  # searches are widened by multiples of it


@torch.inference_mode()
def best_scored(shelf: Shelf, batches: list[Batch], owned: list[Batch | None], k: int) -> list[tuple[Tensor, Tensor]]:
    """(items, scores) of each batch of a group, best first, of equal ones the lower id; -1 and -inf where there are
    fewer than k.  On the CPU.

    `batches`: those of the group that were dealt to this process; `owned`: of the whole group, the histories that must
    not come out.  Every process lists its own range of items.  The lists follow each other in the order of the ranges,
    and sorting them together is stable, so that of equal scores the lower id comes first here too.
    """
    scorers = shelf.scorers(batches, len(owned))
    masks = [shelf.places(each) if each else None for each in owned]
    found = [top_items(scorer, shelf.items, k, mask) for scorer, mask in zip(scorers, masks, strict=True)]
    parts = shelf.ranks.gather([(shelf.ids(places).cpu().numpy(), scores.cpu().numpy()) for places, scores in found])
    groups = [
        [torch.from_numpy(np.concatenate(each, 1)) for each in zip(*lists, strict=True)]
        for lists in zip(*parts, strict=True)
    ]
    return [_best(items, scores, k) for items, scores in groups]


@torch.inference_mode()
def best_generated(
    model: Any, batch: Batch, k: int, n_items: int, among: Any, owned: Batch | None
) -> tuple[Int[Tensor, "B K"], Float[Tensor, "B K"]]:
    """(items, scores), best first; -1 and -inf where a model lists fewer than k.

    `among`: the model's index of the only items that may come out, all if None.  `owned`: the whole histories, which
    must not.
    """
    items, scores = _generated(model, batch, k, among, owned)
    if owned:
        row = torch.arange(len(items), device=items.device)[:, None] * n_items
        scores = scores.masked_fill(torch.isin(row + items, (row + owned.items)[owned.is_item]), -torch.inf)
    return _best(items, scores, k)


def _best(
    items: Int[Tensor, "B W"], scores: Float[Tensor, "B W"], k: int
) -> tuple[Int[Tensor, "B K"], Float[Tensor, "B K"]]:
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    items, scores = items.gather(1, order), scores.gather(1, order)
    return items.masked_fill(scores == -torch.inf, -1), scores


def _generated(
    model: Any, batch: Batch, k: int, among: Any, owned: Batch | None
) -> tuple[Int[Tensor, "B W"], Float[Tensor, "B W"]]:
    """More than k for a user with a history that must not come out, by as much as that takes, whoever else is asked for."""
    more = owned.is_item.sum(1) if owned else torch.zeros(len(batch.items), dtype=torch.int64)
    width = k + -(-more // _LADDER) * _LADDER
    widest = int(width.max())
    items = torch.full((len(batch.items), widest), -1, device=batch.items.device)
    scores = torch.full(items.shape, -torch.inf, device=batch.items.device)
    for each in width.unique().tolist():
        rows = (width == each).nonzero()[:, 0].to(batch.items.device)
        part = batch.rows(rows)
        items[rows, :each], scores[rows, :each] = model.search(part, each, "constrained", among)
    return items, scores
