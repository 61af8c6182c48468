"""What each step of the loop takes: its rate, its draws, its gradient, and which checkpoint is the best."""

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loops import SASREC, fit, never, trainer
from ranks import run_on

from distrec import knobs
from distrec.data import batches
from distrec.engine import launch
from distrec.engine.parallel import Copies, spread
from distrec.engine.trainer import learning_rate
from distrec.models.build import build


def steps_of(small, **more):
    config = knobs.Train(batch_tokens=300, **more)
    return len(batches.steps(batches.training(small, "sequences", 20), config.batch_tokens, 0, 0))


def rates(one):
    """Fit, and note the rate that the optimiser has at each step."""
    rates = []
    settle, step = one._settle, one._step

    def stepped(rows, lr, stop):
        step(rows, lr, stop)
        rates.append({group["lr"] for group in one.optimizer.param_groups})

    one._settle, one._step = settle, stepped
    assert one.fit(never)
    assert all(len(each) == 1 for each in rates)
    return [each.pop() for each in rates]


@pytest.mark.parametrize("floor", [0.0, 0.1])
@pytest.mark.parametrize("warmup", [0.0, 0.02, 0.5, 1.0])
def test_24_every_step_trains_at_the_rate_of_its_place(small, tmp_path, warmup, floor):
    one = trainer(small, tmp_path, warmup=warmup, lr=0.01, min_lr_share=floor)
    seen = rates(one)
    n = len(seen)
    warm = warmup * n
    for step, rate in enumerate(seen):
        fall = max(0.0, (step - warm) / max(1e-9, n - warm))
        right = 0.01 * (floor + (1 - floor) * (1 + math.cos(math.pi * fall)) / 2)
        assert rate == pytest.approx(right * min(1.0, (step + 1) / warm if warm else 1.0), rel=1e-6)
    assert min(seen) > 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines if line["event"] == "train"] == pytest.approx(seen)


def test_24_a_run_of_one_step_trains(small, tmp_path):
    before = [p.detach().clone() for p in build(SASREC, small, 0).parameters()]
    done = fit(small, tmp_path, epochs=1, batch_tokens=10**6, lr=1e-3)
    assert done.progress.step == 1
    moved = [float((one - two).abs().max()) for one, two in zip(done.model.parameters(), before, strict=True)]
    assert max(moved) == pytest.approx(1e-3, rel=0.01)  # Adam's first step is the rate itself
    assert sum(move > 1e-4 for move in moved) > len(moved) / 2


def test_each_epoch_has_an_order_of_its_own(small, tmp_path, monkeypatch):
    rows = []
    one = trainer(small, tmp_path, epochs=2)
    step = one._step
    monkeypatch.setattr(one, "_step", lambda own, lr, stop: (rows.append(own.tolist()), step(own, lr, stop)))
    assert one.fit(never)
    plans = [batches.steps(batches.training(small, "sequences", 20), 300, 0, epoch) for epoch in range(2)]
    assert rows == [own.tolist() for plan in plans for own in plan]


@pytest.mark.parametrize("joined", [1, 3])
def test_processes_that_did_not_join_are_missed(monkeypatch, joined):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(launch, "Accelerator", lambda **_: SimpleNamespace(num_processes=joined))
    with pytest.raises(ValueError, match=f"2 processes were started but {joined} joined"):
        launch.join(knobs.Train())


def test_24_the_rate_rises_to_its_height_once():
    config = knobs.Train(lr=1.0, warmup=0.25, min_lr_share=0.0)
    seen = [learning_rate(config, step / 40, (step + 1) / 40) for step in range(40)]
    assert seen[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert seen[10] == 1.0
    assert all(one > two for one, two in itertools.pairwise(seen[10:]))
    assert seen[-1] > 0


class Noted(torch.nn.Module):
    """A model that writes down the seed of each of its passes."""

    def __init__(self, net):
        super().__init__()
        self.net, self.seeds = net, []
        self.max_len, self.samples = net.max_len, net.samples

    def forward(self, batch):
        self.seeds.append(torch.initial_seed())
        return self.net(batch)

    def scorer(self, batch):
        return self.net.scorer(batch)


@pytest.mark.parametrize("size", [1, 2])
def test_every_pass_of_every_step_and_rank_draws_its_own(small, tmp_path, size):
    def share(seed, name):
        done = fit(small, tmp_path / name, model=Noted(build(SASREC, small, 0)), micro_tokens=60, seed=seed)
        return done.model.seeds[1:]  # the first counts FLOPs

    seeds = [seed for each in run_on(size, lambda: share(0, "a")) for seed in each]
    others = [seed for each in run_on(size, lambda: share(1, "b")) for seed in each]
    assert len(seeds) > 20
    assert len({*seeds, *others}) == len(seeds) + len(others)
    assert [seed for each in run_on(size, lambda: share(0, "c")) for seed in each] == seeds


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_step_s_gradient_is_the_mean_over_the_targets_of_all_ranks(small, tmp_path, size):
    def share():
        one = trainer(small, tmp_path, micro_tokens=40, clip=1e9)
        one.samples = batches.training(small, "sequences", 20)
        one.parallel = spread(one.accelerator, one.model, torch.optim.AdamW(one.model.parameters()), 1e9)
        rows = batches.steps(one.samples, 300, 0, 0)[0]
        n = one.samples.n_targets(rows)
        one._gradient(rows, n)
        ours = one.model.item.weight.grad.clone()
        alone = build(SASREC, small, 0).train()
        (alone(batches.collate(small, one.samples, rows)) / n).backward()
        torch.testing.assert_close(ours, alone.item.weight.grad, atol=1e-6, rtol=1e-4)
        return True

    assert run_on(size, share) == [True] * size


def test_no_step_is_longer_than_the_clip(small, tmp_path):
    one = trainer(small, tmp_path)
    model = build(SASREC, small, 0)
    parallel = Copies(model, torch.optim.SGD(model.parameters(), lr=1.0), launch.join(knobs.Train()))
    samples = batches.training(small, "sequences", 20)
    batch = batches.collate(small, samples, np.arange(8))
    for clip, is_clipped in ((0.05, True), (1e9, False)):
        before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        parallel.add(batch, 1.0, is_last=True)
        norm = float(parallel.step(clip, torch.tensor(True)))
        moved = float((torch.cat([p.detach().flatten() for p in model.parameters()]) - before).norm())
        assert norm > 0.06  # as it was before
        assert not any(p.grad is not None and p.grad.any() for p in model.parameters())  # the next step begins anew
        assert moved == pytest.approx(clip if is_clipped else norm, rel=1e-3)
    assert one.progress.step == 0


@pytest.mark.parametrize(
    ("values", "best", "stale"),
    [([0.5, 0.5, 0.5], 1, 2), ([0.2, 0.5, 0.5], 2, 1), ([0.5, 0.2, 0.6], 3, 0), ([0.0, 0.0, 0.0], 1, 2)],
)
def test_of_equal_evaluations_the_first_is_the_best(small, tmp_path, monkeypatch, values, best, stale):
    left = iter(values)
    one = trainer(small, tmp_path, epochs=3)
    monkeypatch.setattr(one, "_rank_validation", lambda stop: dict.fromkeys(("ndcg@10", "hr@10"), next(left)))
    assert one.fit(never)
    assert int(one.progress.best_checkpoint[-4:]) == best
    assert (one.progress.stale, one.progress.best) == (stale, max(values))


def test_patience_is_counted_in_evaluations_without_a_better_one(small, tmp_path, monkeypatch):
    one = trainer(small, tmp_path, epochs=9, patience=2)
    left = iter([0.1, 0.3, 0.3, 0.2, 0.9])
    monkeypatch.setattr(one, "_rank_validation", lambda stop: dict.fromkeys(("ndcg@10", "hr@10"), next(left)))
    assert one.fit(never)
    assert (one.progress.epoch, one.progress.stopped_early) == (4, True)


@pytest.mark.parametrize(
    ("epochs", "every", "right"), [(5, 2, [2, 4, 5]), (4, 2, [2, 4]), (3, 5, [3]), (3, 1, [1, 2, 3]), (5, 3, [3, 5])]
)
def test_validation_is_ranked_every_few_epochs_and_at_the_end(small, tmp_path, monkeypatch, epochs, every, right):
    one = trainer(small, tmp_path, epochs=epochs, eval_epochs=every, batch_tokens=10**6)
    monkeypatch.setattr(one, "_rank_validation", lambda stop: dict.fromkeys(("ndcg@10", "hr@10"), 0.5))
    assert one.fit(never)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["event"] == "valid"] == right
