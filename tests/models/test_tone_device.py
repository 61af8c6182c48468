"""TIGER and TONE on a GPU: the losses, beams and likelihoods of the CPU, and the host never waits."""

import copy

import pytest
import torch
from pretended import Gpu
from tones import OFF, SIZES, catalogue, histories, tone
from torch.testing import assert_close
from transformers.models.t5.modeling_t5 import T5Attention

from distrec.codes.prefix import PrefixIndex
from distrec.models import tone as module
from distrec.models.blocks import RelativeBias

CUDA = torch.device("cuda", 0)
SWITCHES = pytest.mark.parametrize(
    "switches", [OFF, {}, {"user_tokens": 4, "rpml_decoder": True}], ids=["tiger", "tone", "users"]
)


@SWITCHES
def test_a_training_step_is_that_of_the_cpu_and_never_waits(switches):
    model, batch = tone(**switches).train(), histories()
    with Gpu() as gpu:
        there, sent = copy.deepcopy(model).to(CUDA), batch.to(CUDA)
        gpu.waits.clear()
        torch.manual_seed(0)
        loss = there(sent)
        loss.backward()
        assert not gpu.waits
        assert not gpu.faults
        gradients = {name: p.grad.cpu() for name, p in there.named_parameters() if p.grad is not None}
        value = loss.detach().cpu()
    torch.manual_seed(0)
    expected = model(batch)
    expected.backward()
    assert torch.equal(value, expected.detach())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(gradients[name], parameter.grad), name


@SWITCHES
@torch.no_grad()
def test_beams_and_likelihoods_are_those_of_the_cpu_and_never_wait(switches, monkeypatch):
    for kind in ("cpu", "cuda"):
        monkeypatch.setitem(module._USERS, kind, 4)  # two groups
    model, batch = tone(**switches), histories()
    candidates = torch.arange(60).expand(6, -1)
    expected = [*model.search(batch, 9, "constrained"), *model.search(batch, 9, "free")]
    expected.append(model.likelihood(batch, candidates))
    with Gpu() as gpu:
        there, sent, wanted = copy.deepcopy(model).to(CUDA), batch.to(CUDA), candidates.to(CUDA)
        there.index(CUDA)
        gpu.waits.clear()
        found = [*there.search(sent, 9, "constrained"), *there.search(sent, 9, "free")]
        found.append(there.likelihood(sent, wanted))
        assert not gpu.waits
        assert not gpu.faults
        found = [tensor.cpu() for tensor in found]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@SWITCHES
@torch.no_grad()
def test_a_gpu_searches_more_users_at_once_and_beams_do_not_depend_on_how_many(switches, monkeypatch):
    model, batch = tone(**switches), histories(5)
    assert module._USERS["cuda"] > module._USERS["cpu"]
    items, scores = model.search(batch, 9, "constrained")
    for n in (1, 2, 5):
        monkeypatch.setitem(module._USERS, "cpu", n)
        assert [rows.stop - rows.start for rows in model._groups(batch.items, 20)] == [n] * (-(-5 // n))
        same, close = model.search(batch, 9, "constrained")
        assert torch.equal(same, items)
        assert_close(close, scores, atol=1e-5, rtol=1e-5)
    monkeypatch.setitem(module._CANDIDATES, "cpu", 2 * 20 * model.n_tokens)
    assert [rows.start for rows in model._groups(batch.items, 20)] == [0, 2, 4]


def test_leaves_are_the_items_of_their_codes_and_of_no_others():
    codes = catalogue()
    index = PrefixIndex.of(codes.codes, SIZES)
    every = torch.cartesian_prod(*(torch.arange(-1, size + 2) for size in SIZES))
    expected = codes.items(every)
    assert torch.equal(index.items(index.leaves(every)), expected)
    assert torch.equal(index.items(index.leaves(every.view(11, -1, 4))), expected.view(11, -1))
    some = PrefixIndex.of(codes.codes, SIZES, torch.tensor([3, 59]))
    found = some.items(some.leaves(codes.codes))
    assert found[[3, 59]].tolist() == [3, 59]
    assert (found >= 0).sum() == 2


@pytest.mark.parametrize("both_ways", [True, False])
def test_buckets_are_those_of_t5_for_any_part_of_the_window(both_ways):
    bias = RelativeBias(16, 2, both_ways, 300)
    distance = torch.arange(300) - torch.arange(300)[:, None]
    theirs = T5Attention._relative_position_bucket(distance, bidirectional=both_ways)
    assert torch.equal(bias.bucket, theirs)
    whole = bias(300, 300)
    assert torch.equal(whole, bias.table(theirs).permute(2, 0, 1)[None])
    assert torch.equal(bias(1, 7), whole[:, :, 6:7, :7])
    assert torch.equal(bias(80, 80), whole[:, :, :80, :80])
    assert "bucket" not in bias.state_dict()
