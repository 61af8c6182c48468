"""The items that a process scores: all of them, or its share of a table that the processes hold together.

A share is made of whole chunks, so that every chunk's product has the shape, and with it the bits, that it has where
one process holds everything.
"""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from distrec.data.batches import Batch
from distrec.models.ranking import Scorer, TableModel, by_table
from distrec.runtime import Ranks


class Shelf:
    """Scores `items`, a range of places: the ids of all items, or places in `among`, the only ones wanted (ascending ids).

    `ranks`: who hold the items together; each holds all of them where these are not the launch's ranks but `Ranks()`.
    """

    def __init__(self, model: Any, n_items: int, width: int, ranks: Ranks, among: Int[Tensor, " S"] | None = None):
        n = n_items if among is None else len(among)
        share = ranks.shard(-(-n // width))
        self.items = slice(min(n, share.start * width), min(n, share.stop * width))
        self.ranks, self._model, self._among = ranks, model, among
        self._table = None
        if isinstance(model, TableModel):
            self._table = model.item_vectors(self.items if among is None else among[self.items])
        assert self._table is not None or ranks.size == 1

    def scorers(self, batches: list[Batch], n: int) -> list[Scorer]:
        """Of n batches that were dealt to the ranks, this one's being given."""
        if self._table is None:
            return [self._among_only(self._model.scorer(batch)) for batch in batches]
        own = [self._model.user_states(batch).cpu().numpy() for batch in batches]
        states = [torch.tensor(state, device=self._table.device) for state in self.ranks.collect(own, n)]
        return [by_table(state, self._table, self.items.start) for state in states]

    def places(self, batch: Batch) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
        """(user, place) of every item of a batch that may come out."""
        users, columns = torch.where(batch.is_item)
        items = batch.items[users, columns]
        if self._among is None:
            return users, items
        places = torch.searchsorted(self._among, items).clamp(max=len(self._among) - 1)
        there = self._among[places] == items
        return users[there], places[there]

    def ids(self, places: Int[Tensor, "B K"]) -> Int[Tensor, "B K"]:
        return places if self._among is None else self._among.to(places.device)[places]

    def _among_only(self, scorer: Scorer) -> Scorer:
        among = self._among
        return scorer if among is None else lambda places: scorer(among[places])
