"""The loop on a pretended GPU: outcomes are read late, and nothing else of a run changes."""

import json
from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from loops import SASREC, Poisoned, fit, losses, never, trainer
from pretended import Gpu

from distrec.data import batches
from distrec.engine.late import Late
from distrec.engine.parallel import spread
from distrec.models.build import build


def journal(folder, event):
    return [line for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if line["event"] == event]  # fmt: skip


def weights(one):
    return {name: np.array(p.detach().cpu()) for name, p in one.model.named_parameters()}


def moments(one):
    return {name: np.array(value.cpu()) for name, value in one.parallel.moments().items()}


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def stepped(data, folder, n, **more):
    """A trainer that is ready to step, and the rows of its first n steps."""
    one = trainer(data, folder, **more)
    one.samples = batches.training(data, "sequences", one.model.max_len)
    one.optimizer = torch.optim.AdamW(one.model.parameters(), fused=True)
    one.meter = one._meter()
    one.parallel = spread(one.accelerator, one.model, one.optimizer, 1.0)
    return one, batches.steps(one.samples, one.config.batch_tokens, 0, 0)[:n]


def test_a_gpu_s_run_is_the_cpu_s(small, tmp_path):
    here = fit(small, tmp_path / "cpu")
    with Gpu() as gpu:
        there = fit(small, tmp_path / "gpu")
    assert not gpu.faults
    assert there.progress.step == here.progress.step
    np.testing.assert_allclose(losses(tmp_path / "gpu"), losses(tmp_path / "cpu"), rtol=1e-5)
    for name, value in weights(here).items():
        np.testing.assert_allclose(weights(there)[name], value, atol=1e-4)


def test_a_step_makes_the_host_wait_once_and_for_the_step_before(small, tmp_path):
    with Gpu() as gpu:
        one, plan = stepped(small, tmp_path, 3)
        one._step(plan[0], 1e-3, False)
        gpu.waits.clear()
        one._step(plan[1], 1e-3, False)
        assert gpu.waits == Counter()
        assert not one._settle(1)
        assert len(one.outcomes) == 1
        assert len(one.progress.losses) == 1
        assert [what for what, _ in gpu.waits.elements()] == ["event"]
    assert not gpu.faults


def test_outcomes_are_read_in_order_and_a_stop_is_seen(small, tmp_path):
    with Gpu():
        one, plan = stepped(small, tmp_path / "a", 3)
        for number, rows in enumerate(plan):
            one._step(rows, 1e-3, number == 1)
            one.progress.step += 1
        assert [outcome.step for outcome in one.outcomes] == [1, 2, 3]
        assert not one._settle(2)
        assert one._settle(0)
    with Gpu():
        two, plan = stepped(small, tmp_path / "b", 3)
        for rows in plan:
            two._step(rows, 1e-3, False)
            two._settle(0)
    assert one.progress.losses == two.progress.losses


@pytest.mark.parametrize(("train", "question"), [({"save_steps": 3}, None), ({}, None), ({}, 2)], ids=str)
def test_every_save_holds_every_step(small, tmp_path, monkeypatch, train, question):
    """Between two steps, after an epoch, and when stopped: no outcome is left to be read, so none is lost by a kill."""
    saved = []
    with Gpu():
        one = trainer(small, tmp_path, log_steps=10**6, **train)
        save = one.checkpoints.save

        def look(parallel, progress, **more):
            saved.append((progress.step, len(progress.losses), len(one.outcomes)))
            save(parallel, progress, **more)

        monkeypatch.setattr(one.checkpoints, "save", look)
        asked = iter(range(100))
        one.fit(lambda: next(asked) == question)
    assert len(saved) > 1
    assert saved == [(step, step, 0) for step, *_ in saved]


def test_one_kernel_steps_on_a_gpu_and_torch_s_plain_loop_on_a_cpu(small, tmp_path):
    assert not fit(small, tmp_path / "cpu", epochs=1).optimizer.param_groups[0]["fused"]
    with Gpu():
        assert fit(small, tmp_path / "gpu", epochs=1).optimizer.param_groups[0]["fused"]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_the_device_leaves_out_a_step_that_is_not_finite(small, tmp_path, what):
    """Weights, moments and step counters stay as they are; the journal names the users as it does on a CPU."""
    with Gpu() as gpu:
        one, plan = stepped(small, tmp_path, 2, model=Poisoned(build(SASREC, small, 0), None, what, 0))
        one._step(plan[0], 1e-3, False)
        before = weights(one), moments(one)
        one.model.times = 1
        one._step(plan[1], 1e-3, False)
        assert_same(weights(one), before[0])
        assert_same(moments(one), before[1])
        one._step(plan[1], 1e-3, False)
        assert any((weights(one)[name] != value).any() for name, value in before[0].items())
        one._settle(0)
    assert len(one.progress.losses) == 2
    assert not gpu.faults


def test_a_skipped_step_is_told_alike_on_both_devices(small, tmp_path):
    def run(place):
        return fit(small, tmp_path / place, model=Poisoned(build(SASREC, small, 0), 17, "loss"), log_steps=3)

    run("cpu")
    with Gpu():
        run("gpu")
    one, two = journal(tmp_path / "cpu", "skipped"), journal(tmp_path / "gpu", "skipped")
    assert len(one) == 1
    assert [(line["step"], line["users"]) for line in one] == [(line["step"], line["users"]) for line in two]


def test_too_many_skips_end_the_run_one_step_later_at_most(small, tmp_path):
    with Gpu():
        one = trainer(
            small, tmp_path, model=Poisoned(build(SASREC, small, 0), None, "loss", 10**9), max_skips=3, log_steps=100
        )
        with pytest.raises(ValueError, match="3 steps in a row were not finite"):
            one.fit(never)
    assert one.progress.step == 4


@pytest.mark.parametrize("questions", [1, 2, 6])
def test_stopped_on_a_gpu_it_goes_on_to_the_same_bits(small, tmp_path, questions):
    with Gpu() as gpu:
        whole = fit(small, tmp_path / "whole", log_steps=3)
        asked = iter(range(100))
        cut = trainer(small, tmp_path / "cut", log_steps=3)
        assert not cut.fit(lambda: next(asked) == questions)
        assert not cut.outcomes
        again = fit(small, tmp_path / "cut", log_steps=3)
    assert not gpu.faults
    assert_same(weights(whole), weights(again))
    assert_same(moments(whole), moments(again))
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


@pytest.mark.parametrize("first", ["cpu", "gpu"])
def test_a_run_begun_on_one_kind_of_device_goes_on_on_the_other(small, tmp_path, first):
    """The fused optimiser counts its steps on the device, the plain one on the host; a checkpoint fits both."""
    whole = fit(small, tmp_path / "whole")
    asked, gpu = iter(range(100)), Gpu()
    here, there = (nullcontext(), gpu) if first == "cpu" else (gpu, nullcontext())
    with here:
        assert not trainer(small, tmp_path / "cut").fit(lambda: next(asked) == 2)
    with there:
        again = fit(small, tmp_path / "cut")
    assert not gpu.faults
    assert again.progress.step == whole.progress.step
    for name, value in weights(whole).items():
        np.testing.assert_allclose(weights(again)[name], value, atol=1e-4)


def test_a_late_number_is_the_one_that_was_there(small):
    with Gpu() as gpu:
        values = torch.tensor([1.0, 2.0], device="cuda")
        late = Late(values)
        values += 1
        gpu.waits.clear()
        assert late.read() == [1.0, 2.0]
        assert sum(gpu.waits.values()) == 1
    assert Late(torch.tensor([3.0])).read() == [3.0]
