"""The best items for histories, by any model.

Shapes: B users in a batch, K items wanted.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distrec.data.batches import Batch
from distrec.models.ranking import top_items


@torch.inference_mode()
def best_items(
    model: Any, batch: Batch, k: int, n_items: int, among: Any, owned: Batch | None
) -> tuple[Int[Tensor, "B K"], Float[Tensor, "B K"]]:
    """(items, scores), best first; -1 and -inf where a model lists fewer than k.

    `among`: the only items that may come out, all if None: ascending ids, or of a model that generates its index of
    them.  `owned`: the whole histories, which must not.
    """
    wanted = min(n_items, k + (owned.items.shape[1] if owned else 0))
    if hasattr(model, "scorer"):
        items, scores = top_items(model.scorer(batch), n_items, wanted, among)
    else:
        items, scores = model.search(batch, wanted, "constrained", among)
    if owned:
        row = torch.arange(len(items), device=items.device)[:, None] * n_items
        scores = scores.masked_fill(torch.isin(row + items, (row + owned.items)[owned.is_item]), -torch.inf)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    items, scores = items.gather(1, order), scores.gather(1, order)
    return items.masked_fill(scores == -torch.inf, -1), scores
