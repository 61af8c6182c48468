"""A step behind `Copies` against arithmetic by hand: a loss whose gradient is known."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import nn
from torch.testing import assert_close

from distrec.data.batches import Batch
from distrec.engine.parallel import Copies

GRADIENT = (3.0, 4.0)  # of norm 5


class Line(nn.Module):
    """The gradient of its loss is GRADIENT times the user's number."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("kept", torch.ones(1))
        self.register_buffer("left", torch.ones(1), persistent=False)

    def forward(self, batch):
        return (self.weight * torch.tensor(GRADIENT)).sum() * float(batch.user[0])


def batch(times=1):
    ids, mask = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)
    return Batch(torch.tensor([times]), ids, mask, ids, mask)


def copies(kind=torch.optim.SGD, **settings):
    PartialState._reset_state()
    AcceleratorState._reset_state(True)
    net = Line()
    return Copies(net, kind([net.weight], lr=1.0, **settings), Accelerator(cpu=True))


GOOD, BAD = torch.tensor(True), torch.tensor(False)


@pytest.mark.parametrize(("clip", "moved"), [(1.0, (0.6, 0.8)), (5.5, GRADIENT)])
def test_a_gradient_longer_than_the_clip_is_shortened_to_it_and_its_own_norm_is_told(clip, moved):
    held = copies()
    held.add(batch(), 1.0, True)
    assert float(held.step(clip, GOOD)) == pytest.approx(5)
    assert_close(held.model.weight.detach(), -torch.tensor(moved), atol=1e-5, rtol=0)


def test_pieces_add_up_each_by_its_scale_and_the_loss_is_given_back_without_it():
    held = copies()
    with torch.no_grad():
        held.model.weight += 1
    losses = [float(held.add(batch(n), 0.25, is_last)) for n, is_last in ((1, False), (2, True))]
    assert losses == [7, 14]
    held.step(100, GOOD)
    assert_close(held.model.weight.detach(), 1 - 0.75 * torch.tensor(GRADIENT))


@pytest.mark.parametrize("settings", [{}, {"fused": True}], ids=["usual", "fused"])
@pytest.mark.parametrize(("times", "is_finite"), [(1, BAD), (float("inf"), GOOD), (float("nan"), GOOD)])
def test_nothing_moves_where_loss_or_norm_is_not_finite_and_the_gradient_is_forgotten(settings, times, is_finite):
    held, plain = copies(torch.optim.AdamW, **settings), copies(torch.optim.AdamW, **settings)
    for one in (held, plain):
        one.add(batch(), 1.0, True)
        one.step(1, GOOD)
    before = {name: value.clone() for name, value in (held.weights() | held.moments()).items()}
    hook = held.model.weight.register_hook(lambda gradient: gradient * times)
    held.add(batch(), 1.0, True)
    held.step(1, is_finite)
    hook.remove()
    after = held.weights() | held.moments()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    for one in (held, plain):  # as if the bad step had never been
        one.add(batch(), 1.0, True)
        one.step(1, GOOD)
    assert torch.equal(held.model.weight, plain.model.weight)


def test_what_is_saved_is_what_trains_the_buffers_of_a_state_and_the_moments():
    held = copies(torch.optim.AdamW)
    assert set(held.weights()) == {"weight", "kept"}
    assert held.moments() == {}
    held.add(batch(), 1.0, True)
    held.step(1, GOOD)
    assert set(held.moments()) == {f"weight/{name}" for name in ("step", "exp_avg", "exp_avg_sq")}


def test_moments_that_are_restored_take_the_place_of_all_that_were_there():
    held, other = copies(torch.optim.AdamW), copies(torch.optim.AdamW)
    held.add(batch(), 1.0, True)
    held.step(1, GOOD)
    saved = {name: value.clone() for name, value in held.weights().items()}
    held.restore(saved, {})  # of a run before its first step
    assert held.moments() == {}
    with torch.no_grad():
        other.model.weight.copy_(saved["weight"])
    for one in (held, other):
        one.add(batch(3), 1.0, True)
        one.step(1, GOOD)
    assert torch.equal(held.model.weight, other.model.weight)
