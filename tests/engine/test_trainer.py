"""The loop: one gradient for any cut into pieces and ranks, steps that are not finite, stopping, learning."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from decoders import frellm, saved
from loops import SASREC, Poisoned, fit, losses, never, trainer
from ranks import run_on

from distrec import knobs
from distrec.data import batches
from distrec.engine.trainer import learning_rate
from distrec.models.build import build


def test_the_learning_rate_warms_up_and_follows_a_cosine():
    config = knobs.Train(lr=1.0, warmup=0.1, min_lr_share=0.2)
    assert learning_rate(config, 0, 0.01) == pytest.approx(0.1)
    assert learning_rate(config, 0.04, 0.05) == pytest.approx(0.5)
    assert learning_rate(config, 0.09, 0.1) == pytest.approx(1.0)
    assert learning_rate(config, 0.1, 0.11) == pytest.approx(1.0)
    assert learning_rate(config, 0.55, 0.56) == pytest.approx(0.2 + 0.8 / 2)
    assert learning_rate(config, 1, 1) == pytest.approx(0.2)
    assert learning_rate(knobs.Train(warmup=0.0), 0, 0.5) == knobs.Train().lr
    assert learning_rate(knobs.Train(), 0, 1) == knobs.Train().lr  # a run of one step trains as much as any


def test_it_learns(small, tmp_path):
    done = fit(small, tmp_path, epochs=12, lr=5e-3)
    assert losses(tmp_path)[0] == pytest.approx(
        math.log(small.n_items), rel=0.02
    )  # nats a target: nothing is known yet
    assert np.mean(losses(tmp_path)[-5:]) < np.mean(losses(tmp_path)[:5]) - 0.2
    assert done.progress.best > 0


@pytest.mark.parametrize("micro", [25, 60, 150])
def test_accumulation_divides_by_the_number_of_targets(small, tmp_path, micro):
    whole, cut = fit(small, tmp_path / "a"), fit(small, tmp_path / "b", micro_tokens=micro)
    np.testing.assert_allclose(losses(tmp_path / "a"), losses(tmp_path / "b"), rtol=1e-5)
    for one, two in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_follow_the_curve_of_one(small, tmp_path, size):
    alone = fit(small, tmp_path / "one")

    def share():
        return float(fit(small, tmp_path / "many").progress.best)

    assert run_on(size, share) == [pytest.approx(alone.progress.best, abs=1e-3)] * size
    np.testing.assert_allclose(losses(tmp_path / "one"), losses(tmp_path / "many"), rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_stopped_while_it_evaluates_it_evaluates_again(small, tmp_path, size):
    """One rank alone is asked, at its n-th question: one a step, one a group of users."""

    def share(name, nth=10**9):
        one = trainer(small, tmp_path / name)
        asked = iter(range(10**9))
        finished = one.fit(lambda: one.ranks.is_main and next(asked) == nth)
        return finished, one.progress, [p.detach().numpy() for p in one.model.parameters()]

    steps = len(batches.steps(batches.training(small, "sequences", 20), 300, 0, 0))
    whole = run_on(size, lambda: share("whole"))
    cut = run_on(size, lambda: share("cut", steps))
    assert [finished for finished, _, _ in cut] == [False] * size
    assert {(p.epoch, p.position, p.evaluations) for _, p, _ in cut} == {(0, steps, 0)}
    for (done, progress, weights), (_, wanted, same) in zip(run_on(size, lambda: share("cut")), whole, strict=True):
        assert done
        assert progress == wanted
        assert all(np.array_equal(one, two) for one, two in zip(weights, same, strict=True))


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("size", [1, 2])
def test_a_step_that_is_not_finite_is_skipped_on_every_rank_and_named(small, tmp_path, what, size):
    def share():
        done = fit(small, tmp_path, model=Poisoned(build(SASREC, small, 0), 17, what))
        assert done.progress.skips == 0
        return [p.detach().numpy() for p in done.model.parameters()]

    answers = run_on(size, share)
    for weights in answers:
        assert all(np.isfinite(w).all() for w in weights)
        assert all(np.array_equal(one, two) for one, two in zip(weights, answers[0], strict=True))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    skipped = [line for line in lines if line["event"] == "skipped"]
    assert len(skipped) == 1
    assert small.users[17]["raw"] in skipped[0]["users"]


def test_too_many_skips_in_a_row_stop_the_run(small, tmp_path):
    one = trainer(small, tmp_path, model=Poisoned(build(SASREC, small, 0), None, "loss", 10**9), max_skips=4)
    with pytest.raises(ValueError, match=r"4 steps in a row were not finite \(train.max_skips\)"):
        one.fit(never)
    assert one.progress.step == 4


def test_it_stops_early_on_validation_and_keeps_the_best(small, tmp_path):
    done = fit(small, tmp_path, epochs=30, patience=2, lr=3e-2)
    assert done.progress.stopped_early
    assert done.progress.epoch < 30
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    valid = [line["ndcg@10"] for line in lines if line["event"] == "valid"]
    assert max(valid) == done.progress.best
    assert valid.index(max(valid)) == len(valid) - 3
    assert (tmp_path / "checkpoints" / done.progress.best_checkpoint).is_dir()


class After:
    """Asks to stop after n looks."""

    def __init__(self, n):
        self.left = n

    def __call__(self):
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("dropout", [0.2, 0.0])
@pytest.mark.parametrize("micro", [60, 10**6])
def test_stopped_at_any_step_and_resumed_it_ends_with_the_same_bits(small, tmp_path, micro, dropout):
    model = replace(SASREC, dropout=dropout)
    more = {"micro_tokens": micro, "model": model, "save_steps": 2}
    whole = fit(small, tmp_path / "whole", **more)
    for n in (0, 1, 3, whole.progress.step // 2, whole.progress.step - 1):
        folder = tmp_path / str(n)
        assert not trainer(small, folder, **more).fit(After(n))
        torch.randn(n + 1)  # nothing depends on what was drawn before
        resumed = fit(small, folder, **more)
        for one, two in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(one, two)
        assert losses(folder) == losses(tmp_path / "whole")


def test_three_processes_resume_with_the_same_bits(small, tmp_path):
    """With three, the order of a sum matters: DDP must not lay its buckets out anew."""

    def share():
        model = replace(SASREC, dropout=0.2)
        whole = fit(small, tmp_path / "whole", model=model)
        assert not trainer(small, tmp_path / "cut", model=model).fit(After(3))
        resumed = fit(small, tmp_path / "cut", model=model)
        return all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))

    assert run_on(3, share) == [True] * 3


def test_without_its_checkpoints_a_run_does_not_start_over(small, tmp_path):
    import shutil

    fit(small, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="no checkpoint is left"):
        trainer(small, tmp_path).fit(never)


def test_on_random_sequences_the_loss_stays_at_chance(small, tmp_path):
    """No look ahead: with i.i.d. items nothing beats the uniform guess (a leak would)."""
    rng = np.random.default_rng(0)
    noise = replace(small, item=rng.integers(0, small.n_items, len(small.item)).astype(np.int32))
    one = trainer(noise, tmp_path, epochs=3)
    one.fit(never)
    assert np.mean(losses(tmp_path)[-5:]) > 0.98 * math.log(small.n_items)


def test_throughput_memory_and_mfu_are_logged(small, tmp_path):
    fit(small, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["event"] == "train"][-1]
    assert last["tokens_per_s"] > 0
    assert last["items_per_s"] > 0
    assert 0.01 < last["peak_gib"] < 100
    assert 0 < last["mfu"] < 1.5


def test_only_matrices_decay(small, tmp_path):
    run = trainer(small, tmp_path, epochs=1, weight_decay=0.1)
    run.fit(never)
    decayed, kept = run.optimizer.param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in kept["params"]} == {1}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(run.model.parameters()))


def learnt(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["event"], line["step"], line["learnt"]) for line in lines if "learnt" in line]


def test_what_parts_learnt_is_told_from_the_start_and_at_each_evaluation(small, tmp_path):
    saved(tmp_path / "llm", width=32, layers=2)

    def one(name):
        return trainer(
            small, tmp_path / name, model=frellm(tmp_path / "llm", n_items=small.n_items, tfm={"learn_cutoff": True})
        )

    whole = one("whole")
    assert whole.fit(never)
    told = learnt(tmp_path / "whole")
    assert [event for event, _, _ in told] == ["start", "valid", "valid"]
    assert told[0] == ("start", 0, {"cutoff.0": pytest.approx(0.3), "cutoff.1": pytest.approx(0.3)})
    assert told[-1][2] == whole.model.facts() != told[0][2]
    assert not one("cut").fit(After(0))
    assert not one("cut").fit(After(3))
    assert one("cut").fit(never)
    assert learnt(tmp_path / "cut") == told
    fit(small, tmp_path / "without")
    assert not learnt(tmp_path / "without")


class Sealed(Poisoned):
    """A model that records when its seal is looked at."""

    def __init__(self, net):
        super().__init__(net, None, "loss", times=0)
        self.looks = []

    def check_seal(self, whole):
        self.looks.append("check")

    def verify_seal(self, whole):
        self.looks.append("verify")


def test_the_seal_is_checked_at_each_save_and_verified_once_when_training_has_ended(small, tmp_path):
    asked = iter(range(100))
    cut = trainer(small, tmp_path, model=Sealed(build(SASREC, small, 0)))
    assert not cut.fit(lambda: next(asked) == 2)
    assert cut.model.looks == ["check"] * 2  # before the first step, and when stopped
    done = fit(small, tmp_path, model=Sealed(build(SASREC, small, 0)))
    assert done.model.looks == ["check"] * 2 + ["verify"]  # one save an epoch
