"""The best items of a model that can score any of them."""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

CHUNK = 65_536  # items scored at once


def top_items(scorer: Callable[[slice | Tensor], Tensor], n_items: int, k: int) -> Int[Tensor, "B K"]:
    """The k items with the highest scores, best first; of equal ones the lower id."""
    best: Tensor | None = None
    ids: Tensor | None = None
    for low in range(0, n_items, CHUNK):
        scores = scorer(slice(low, min(low + CHUNK, n_items)))
        places = torch.arange(low, low + scores.shape[1], device=scores.device).expand_as(scores)
        best = scores if best is None else torch.cat([best, scores], 1)
        ids = places if ids is None else torch.cat([ids, places], 1)
        order = best.argsort(dim=1, descending=True, stable=True)[:, :k]  # earlier columns have lower ids
        best, ids = best.gather(1, order), ids.gather(1, order)
    assert ids is not None
    return ids
