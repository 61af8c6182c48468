"""Cross-entropy in pieces against torch's at once; sampled against full."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from distrec.models import softmax


def problem(n=300, items=700, width=16):
    g = torch.Generator().manual_seed(0)
    states, table = torch.randn(n, width, generator=g), torch.randn(items, width, generator=g)
    return states.requires_grad_(), table.requires_grad_(), torch.randint(items, (n,), generator=g)


class Largest(TorchDispatchMode):
    """The most elements that a tensor had."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.n = max(self.n, out.numel())
        return out


def test_in_pieces_it_is_the_cross_entropy_gradients_too():
    states, table, targets = problem()
    wanted = F.cross_entropy(states @ table.T, targets, reduction="sum")
    gradients = torch.autograd.grad(wanted, (states, table))
    rows = 2**20 // (4 * 700)
    assert rows < 400
    many = states.repeat(3, 1), targets.repeat(3)
    loss = softmax.full(many[0], table, many[1], mib=1)
    assert_close(loss, 3 * wanted)
    for found, grad in zip(torch.autograd.grad(loss, (states, table)), gradients, strict=True):
        assert_close(found, 3 * grad, atol=1e-4, rtol=1e-4)
    assert_close(softmax.full(states, table, targets, mib=64), wanted)


def test_logits_never_take_more_than_was_set():
    states, table, targets = problem(n=3000, items=2000)
    with Largest() as seen:
        softmax.full(states, table, targets, mib=1).backward()
    assert seen.n <= 2**20 // 4
    assert seen.n > 2**20 // 8


def test_sampled_estimates_the_full_softmax():
    states, table, targets = problem()
    wanted = F.cross_entropy((states / 4) @ table.T, targets, reduction="sum")
    none = torch.full((300, 1), -1)
    found = []
    for seed in range(20):
        drawn = torch.randint(700, (400,), generator=torch.Generator().manual_seed(seed))
        found.append(softmax.sampled(states / 4, table[targets], targets, none, table[drawn], drawn, 700, True))
    assert float(torch.stack(found).mean().detach() / wanted.detach()) == pytest.approx(1, abs=0.01)
    zero = torch.zeros(300, 16)
    drawn = torch.arange(99)
    loss = softmax.sampled(zero, zero, torch.full((300,), 600), none, torch.zeros(99, 16), drawn, 700, True)
    assert float(loss) / 300 == pytest.approx(math.log(700), abs=1e-5)
    loss = softmax.sampled(zero, zero, torch.full((300,), 600), none, torch.zeros(99, 16), drawn, 700, False)
    assert float(loss) / 300 == pytest.approx(math.log(100), abs=1e-5)


def test_negatives_that_count_stand_for_all_other_items():
    """Corrected, with collisions: a row's few negatives that count share the weight of I − 1 items."""
    states, table, targets = problem(n=50)
    g = torch.Generator().manual_seed(2)
    drawn, owned = torch.randint(60, (40,), generator=g), torch.randint(-1, 60, (50, 25), generator=g)
    targets = targets % 60
    loss = softmax.sampled(states, table[targets], targets, owned, table[drawn], drawn, 700, True)
    total, counts = 0.0, set()
    for i in range(50):
        kept = [j for j in drawn.tolist() if j != targets[i] and j not in owned[i].tolist()]
        counts.add(len(kept))
        own, others = table[targets[i]] @ states[i], table[kept] @ states[i] + math.log(699 / len(kept))
        total += (torch.cat([own[None], others]).logsumexp(0) - own).item()
    assert len(counts) > 5
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)


def test_what_a_row_owns_is_no_negative_of_its():
    states, table, targets = problem(n=50)
    g = torch.Generator().manual_seed(1)
    drawn = torch.randint(60, (40,), generator=g)  # repeats among them
    owned = torch.randint(-1, 60, (50, 9), generator=g)
    targets = targets % 60
    found = softmax.sampled(states, table[targets], targets, owned, table[drawn], drawn, 700, False)
    total = 0.0
    for i in range(50):
        kept = [j for j in drawn.tolist() if j != targets[i] and j not in owned[i].tolist()]
        logits = torch.cat([table[targets[i]][None], table[kept]]) @ states[i]
        total += (logits.logsumexp(0) - logits[0]).item()
    assert float(found) == pytest.approx(total, rel=1e-5)


def test_nothing_left_to_push_away_costs_nothing():
    x = torch.ones(2, 3)
    loss = softmax.sampled(x, x, torch.tensor([4, 4]), torch.full((2, 1), -1), x, torch.tensor([4, 4]), 10, True)
    assert float(loss) == 0
