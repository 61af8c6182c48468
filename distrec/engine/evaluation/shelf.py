"""The items that a process scores: all of them, or its share of a table that the processes hold together.

A share is made of whole chunks, so that every chunk's product has the shape, and with it the bits, that it has where
one process holds everything.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from distrec.data.batches import Batch
from distrec.models.ranking import Places, Scorer, TableModel, by_table
from distrec.runtime import Ranks


class Shelf:
    """Scores `items`, a range of places: the ids of all items, or places in `among`, the only ones wanted (ascending ids).

    `ranks`: who hold the items together; each holds all of them where these are not the launch's ranks but `Ranks()`.
    """

    def __init__(self, model: Any, n_items: int, width: int, ranks: Ranks, among: Int[Tensor, " S"] | None = None):
        self._allowed = None if among is None else among.cpu().numpy()
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
        states = [self._model.user_states(batch).contiguous() for batch in batches]
        if self.ranks.size > 1:
            states = self._collected(states, n)
        return [by_table(state, self._table, self.items.start) for state in states]

    def places(self, batch: Batch) -> Places:
        """(user, place) of every item that may come out of a batch on the host."""
        users, columns = np.nonzero(batch.is_item.numpy())
        items = batch.items.numpy()[users, columns]
        if self._allowed is None:
            return users, items
        places = np.searchsorted(self._allowed, items).clip(max=len(self._allowed) - 1)
        is_allowed = self._allowed[places] == items
        return users[is_allowed], places[is_allowed]

    def ids(self, places: Int[Tensor, "B K"]) -> Int[Tensor, "B K"]:
        return places if self._among is None else self._among[places]

    def _collected(self, states: list[Tensor], n: int) -> list[Tensor]:
        """The states of all n batches, in the group's order, from those of this rank: one copy to the host, one back."""
        whole = torch.cat(states).cpu().numpy()
        parts = self.ranks.collect(np.split(whole, np.cumsum([len(state) for state in states[:-1]])), n)
        return list(torch.from_numpy(np.concatenate(parts)).to(states[0].device).split([len(part) for part in parts]))

    def _among_only(self, scorer: Scorer) -> Scorer:
        among = self._among
        return scorer if among is None else lambda places: scorer(among[places])
