"""The best items for histories, by any model.

Shapes: B users in a batch, K items wanted.
"""

from dataclasses import fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distrec.data.batches import Batch
from distrec.models.ranking import top_items

_LADDER = 32  # searches are widened by multiples of it


@torch.inference_mode()
def best_items(
    model: Any, batch: Batch, k: int, n_items: int, among: Any, owned: Batch | None
) -> tuple[Int[Tensor, "B K"], Float[Tensor, "B K"]]:
    """(items, scores), best first; -1 and -inf where a model lists fewer than k.

    `among`: the only items that may come out, all if None: ascending ids, or of a model that generates its index of
    them.  `owned`: the whole histories, which must not.
    """
    if hasattr(model, "scorer"):
        wanted = min(n_items, k + (owned.items.shape[1] if owned else 0))
        items, scores = top_items(model.scorer(batch), n_items, wanted, among)
    else:
        items, scores = _generated(model, batch, k, among, owned)
    if owned:
        row = torch.arange(len(items), device=items.device)[:, None] * n_items
        scores = scores.masked_fill(torch.isin(row + items, (row + owned.items)[owned.is_item]), -torch.inf)
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
        part = Batch(**{field.name: getattr(batch, field.name)[rows] for field in fields(batch)})
        items[rows, :each], scores[rows, :each] = model.search(part, each, "constrained", among)
    return items, scores
