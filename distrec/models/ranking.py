"""The best items of a model that can score any of them."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 65_536  # items scored at once


def top_items(
    scorer: Callable[[slice | Tensor], Tensor], n_items: int, k: int, among: Int[Tensor, " S"] | None = None
) -> tuple[Int[Tensor, "B K"], Float[Tensor, "B K"]]:
    """(the k items with the highest scores, best first, of equal ones the lower id; their scores).

    `among`: the only items that may come out, ascending; all if None.
    """
    n = n_items if among is None else len(among)
    best: Tensor | None = None
    ids: Tensor | None = None
    for low in range(0, n, CHUNK):
        part = slice(low, min(low + CHUNK, n))
        scores = scorer(part if among is None else among[part])
        places = torch.arange(low, low + scores.shape[1], device=scores.device).expand_as(scores)
        best = scores if best is None else torch.cat([best, scores], 1)
        ids = places if ids is None else torch.cat([ids, places], 1)
        order = best.argsort(dim=1, descending=True, stable=True)[:, :k]  # earlier columns have lower ids
        best, ids = best.gather(1, order), ids.gather(1, order)
    assert ids is not None
    assert best is not None
    return (ids if among is None else among.to(ids.device)[ids]), best
