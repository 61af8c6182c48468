"""Every model trains on the pretended GPU: nothing that CUDA refuses, few host waits a step, the CPU's weights."""

from collections import Counter

import loops
import pytest
import torch
from pretending import counts, limits
from torch.nn import functional as F

from distrec import knobs
from distrec.models.sasrec import SasRec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pretending")


@pytest.fixture
def gpu(monkeypatch):
    with counts.device(monkeypatch) as device:
        yield device


def check_step(gpu, name, data, folder, model, **train):
    """A training step of the model waits as often as the table says, and does nothing that CUDA refuses."""
    rounds, trainer = counts.steps(gpu, data, folder, model, **train)
    assert not gpu.faults, str(dict(gpu.faults))
    worst = max(rounds, key=Counter.total)
    assert worst.total() == limits.STEP[name], str(dict(worst))
    return trainer


@pytest.mark.parametrize("name", limits.STEP)
def test_a_step_does_nothing_that_cuda_refuses_and_waits_rarely(small, gpu, folder, name):
    make, train = counts.zoo(folder)[name]
    trainer = check_step(gpu, name, small, folder / name, make(small), **train)
    assert trainer.model.training
    assert all(parameter.is_cuda for parameter in trainer.model.parameters())


def test_every_model_is_measured(folder):
    assert limits.STEP.keys() == counts.zoo(folder).keys()


PLANTS = {
    "an index of the CPU": lambda model, batch: F.embedding(torch.tensor([0]), model.item.weight).sum(),
    "a generator of the CPU": lambda model, batch: torch.rand((), device=batch.items.device, generator=torch.Generator()),
    "a value that is read": lambda model, batch: batch.items.float().mean().item(),
    "a mask": lambda model, batch: batch.items[batch.is_item].sum(),
    "a pageable copy": lambda model, batch: torch.ones(3).to(batch.items.device).sum(),
}  # fmt: skip


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_fault_fails_the_check(small, gpu, tmp_path, plant):
    class Planted(SasRec):
        def forward(self, batch):
            return super().forward(batch) + 0.0 * PLANTS[plant](self, batch)

    with pytest.raises(AssertionError, match=r"tests/pretending/test_training\.py"):
        check_step(gpu, "sasrec ce", small, tmp_path, Planted(knobs.SasRec(**counts.SASREC), small.n_items))


def test_a_read_planted_in_the_loop_fails_the_check(small, gpu, tmp_path, monkeypatch):
    real = loops.Trainer._gradient

    def gradient(self, *words):
        total = real(self, *words)
        assert total.item() > 0
        return total

    monkeypatch.setattr(loops.Trainer, "_gradient", gradient)
    with pytest.raises(AssertionError, match=r"tests/pretending/test_training\.py"):
        check_step(gpu, "sasrec ce", small, tmp_path, SasRec(knobs.SasRec(**counts.SASREC), small.n_items))


@pytest.mark.parametrize("name", ["sasrec ce", "tone", "frellm LoRA"])
def test_stopped_and_resumed_it_ends_with_the_same_bits_and_with_the_cpu_s_losses(
    small, folder, tmp_path, monkeypatch, name
):
    make, train = counts.zoo(folder)[name]
    train = {"epochs": 1, "batch_tokens": 4000 if name == "tone" else 400, "save_steps": 1, **train}

    def fit(place, device, n_looks=10**6):
        looks = iter(range(10**6))
        torch.manual_seed(0)
        trainer = loops.trainer(small, tmp_path / place, model=make(small).to(device), **train)
        is_complete = trainer.fit(lambda: next(looks) >= n_looks)
        return is_complete, {key: value.detach().cpu() for key, value in trainer.parallel.weights().items()}

    fit("cpu", "cpu")
    with counts.device(monkeypatch) as gpu:
        whole = fit("whole", "cuda")[1]
        assert not fit("cut", "cuda", n_looks=1)[0]
        is_complete, cut = fit("cut", "cuda")
        assert not gpu.faults, gpu.faults
    assert is_complete
    for key, value in whole.items():
        assert torch.equal(value, cut[key]), key
    assert loops.losses(tmp_path / "whole") == loops.losses(tmp_path / "cut")
    assert loops.losses(tmp_path / "whole") == pytest.approx(loops.losses(tmp_path / "cpu"), rel=1e-3)
