"""Yardsticks that need no learning: they count training interactions and are complete when built.

Source: METHODS §0.9 and §4 of the project: a counting chain outranks several published generative models.

Shapes: B users in a batch, T positions, I items.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor, nn

from distrec.data.batches import Batch
from distrec.data.prepared import Prepared
from distrec.models.ranking import Scorer, top_items


class _Counting(nn.Module):
    """Scores computed from the latest max_len items by `_scores`; no parameters, no loss."""

    def __init__(self, data: Prepared, max_len: int = 1):
        super().__init__()
        self.n_items = data.n_items
        self.max_len = max_len

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        raise TypeError(f"{type(self).__name__} counts; it has nothing to train")

    def rank(self, batch: Batch, k: int) -> Int[Tensor, "B K"]:
        return top_items(self.scorer(batch), slice(0, self.n_items), k)[0]

    def scorer(self, batch: Batch) -> Scorer:
        raise NotImplementedError


class Popularity(_Counting):
    """score(i) = number of training interactions of i."""

    def __init__(self, data: Prepared):
        super().__init__(data)
        counts = np.bincount(data.item[data.is_train()], minlength=data.n_items)
        self.counts = torch.from_numpy(counts).float()

    def scorer(self, batch: Batch) -> Scorer:
        counts = self.counts.to(batch.items.device)
        return lambda items: counts[items].repeat(len(batch.items), 1)


class _Neighbours(_Counting):
    """score(i) = Σ over the history of weight × similarity(history item, i), with a sparse similarity."""

    def __init__(self, data: Prepared, similarity: sparse.csr_array, max_len: int):
        super().__init__(data, max_len)
        self.similarity = similarity

    def weights(self, is_item: np.ndarray) -> np.ndarray:
        return is_item.astype(np.float64)

    def scorer(self, batch: Batch) -> Scorer:
        is_item = batch.is_item.cpu().numpy()
        weights = self.weights(is_item)[is_item]
        place = (np.where(is_item)[0], batch.items.cpu().numpy()[is_item])
        history = sparse.coo_array((weights, place), shape=(len(is_item), self.n_items)).tocsr()  # repeats add up
        scores = sparse.csc_array(history @ self.similarity)

        def of(items: slice | Tensor) -> Tensor:
            chosen = items if isinstance(items, slice) else items.cpu().numpy()
            return torch.from_numpy(scores[:, chosen].toarray().astype(np.float32)).to(batch.items.device)

        return of


class ItemKnn(_Neighbours):
    """Cosine of binary co-occurrence: C_ij / sqrt(n_i n_j), zero diagonal, summed over the history."""

    def __init__(self, data: Prepared, max_len: int):
        users = np.repeat(np.arange(data.n_users), np.diff(data.start))
        train = data.is_train()
        seen = sparse.csr_array(
            (np.ones(train.sum()), (users[train], data.item[train])), shape=(data.n_users, data.n_items)
        )
        seen.data[:] = 1.0  # binary: a repeat counts once
        together = sparse.csr_array(seen.T @ seen)
        scale = 1 / np.sqrt(np.maximum(together.diagonal(), 1))
        together.setdiag(0)
        super().__init__(data, sparse.diags_array(scale) @ together @ sparse.diags_array(scale), max_len)


class Markov(_Neighbours):
    """First-order transitions, row-normalised; the last item weighs 1, the one before `decay`, then decay² …"""

    def __init__(self, data: Prepared, decay: float, max_len: int):
        follows = data.is_train()[1:] & (np.diff(np.repeat(np.arange(data.n_users), np.diff(data.start))) == 0)
        pair = (data.item[:-1][follows], data.item[1:][follows])
        counts = sparse.csr_array((np.ones(follows.sum()), pair), shape=(data.n_items, data.n_items))
        rows = np.maximum(counts.sum(1), 1)
        super().__init__(data, sparse.csr_array(sparse.diags_array(1 / rows) @ counts), max_len)
        self.decay = decay

    def weights(self, is_item: np.ndarray) -> np.ndarray:
        return is_item * self.decay ** np.arange(is_item.shape[1] - 1, -1, -1.0)
