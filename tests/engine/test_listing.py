"""Searches that leave out what a user has are widened by that user's own history."""

import torch

from distrec.data.batches import Batch
from distrec.engine.evaluation.listing import best_generated


class Searched:
    """Lists 0, 1, 2 … and keeps how widely each user was searched."""

    def __init__(self):
        self.width = {}

    def search(self, batch, k, decoding, among):
        self.width |= dict.fromkeys(batch.user.tolist(), k)
        items = torch.arange(k).expand(len(batch.items), -1)
        return items, -items.float()


def batch_of(*lengths):
    longest = max(lengths)
    is_item = torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
    items = (torch.arange(longest).expand(len(lengths), -1) - (longest - torch.tensor(lengths))[:, None]).clamp(min=0)
    return Batch(torch.arange(len(lengths)), items, is_item, items, is_item)


def test_a_search_is_as_wide_as_the_user_s_own_history_takes():
    together, alone = Searched(), Searched()
    batch = batch_of(3, 100, 0, 40)
    items, scores = best_generated(together, batch, 5, 1000, None, batch)
    assert together.width == {0: 37, 1: 133, 2: 5, 3: 69}
    assert items.tolist() == [[n, n + 1, n + 2, n + 3, n + 4] for n in (3, 100, 0, 40)]
    assert bool(scores.isfinite().all())
    best_generated(alone, batch_of(3), 5, 1000, None, batch_of(3))
    assert alone.width == {0: 37}
    best_generated(alone, batch_of(3), 5, 1000, None, None)
    assert alone.width == {0: 5}
