"""DeepSpeed's ZeRO against one process: the same losses, figures and checkpoints, which go anywhere."""

import json
import os

import numpy as np
import pytest
import torch
from decoders import HELD, frellm, saved
from loops import SASREC, fit, losses, trainer
from ranks import run_on

from distrec.data import store
from distrec.engine.evaluation import exact, scoring
from distrec.models import ranking
from distrec.models.build import build
from distrec.runtime import Ranks

pytest.importorskip("deepspeed", reason="needs DeepSpeed: pip install 'distrec[deepspeed]'")


def under(stage, fn):
    """fn with DeepSpeed asked for, as `accelerate launch --use_deepspeed --zero_stage N` does."""

    def start():
        if stage:
            del os.environ["ACCELERATE_USE_CPU"]
            os.environ.update(ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE=str(stage))
        return fn()

    return start


def model(kind, small, folder):
    if kind == "sasrec":
        return build(SASREC, small, 0)
    return frellm(folder, n_items=small.n_items, **json.loads(kind))


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "@" in k} for line in lines if line["event"] == "valid"]


def learnt(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [list(line["learnt"].values()) for line in lines if "learnt" in line]


KINDS = ["sasrec", *map(json.dumps, HELD), '{"tfm": {"learn_cutoff": true}}']


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_zero_follows_the_curve_of_one_process(small, tmp_path, kind):
    saved(tmp_path / "llm", width=32, layers=2)

    def share(stage):
        done = fit(small, tmp_path / str(stage), model=model(kind, small, tmp_path / "llm"), micro_tokens=100)
        if kind != "sasrec":
            done.model.check_seal(done.parallel.whole)
        return {name: value.numpy() for name, value in done.parallel.weights().items()}

    (alone,) = run_on(1, lambda: share(0))
    for stage in (1, 2, 3):
        for weights in run_on(2, under(stage, lambda stage=stage: share(stage))):
            assert weights.keys() == alone.keys()
            for name, value in weights.items():
                np.testing.assert_allclose(value, alone[name], atol=1e-4, err_msg=f"{stage} {name}")
        np.testing.assert_allclose(losses(tmp_path / str(stage)), losses(tmp_path / "0"), atol=1e-5)
        assert metrics(tmp_path / str(stage)) == metrics(tmp_path / "0")
        np.testing.assert_allclose(learnt(tmp_path / str(stage)), learnt(tmp_path / "0"), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_was_saved_on_two_processes_goes_on_on_any_number(small, tmp_path, stage):
    def share(name, limit=99, epochs=2):
        one = trainer(small, tmp_path / name, epochs=epochs)
        steps = iter(range(limit))
        return one.fit(lambda: next(steps, None) is None)

    assert run_on(2, under(stage, lambda: share("two", limit=3))) == [False, False]
    assert run_on(1, lambda: share("whole")) == [True]
    for size, other in ((1, 0), (3, 0), (4, stage), (2, 3 if stage != 3 else 2)):
        name = f"{size}-{other}"
        (tmp_path / name).mkdir()
        os.system(f"cp -r {tmp_path}/two/. {tmp_path}/{name}")
        assert run_on(size, under(other, lambda name=name: share(name))) == [True] * size
        np.testing.assert_allclose(losses(tmp_path / name), losses(tmp_path / "whole"), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_resumed_run_is_bit_for_bit_the_whole_one(small, tmp_path, stage, is_async):
    def share(name, limit=99):
        one = trainer(small, tmp_path / name, save_steps=1, async_save=is_async and name == "cut")
        steps = iter(range(limit))
        finished = one.fit(lambda: next(steps, None) is None)
        state = one.parallel.weights() | one.parallel.moments()
        return finished, {key: value.numpy() for key, value in state.items()}

    whole = run_on(2, under(stage, lambda: share("whole")))
    assert [finished for finished, _ in run_on(2, under(stage, lambda: share("cut", limit=4)))] == [False, False]
    for (_, one), (_, two) in zip(run_on(2, under(stage, lambda: share("cut"))), whole, strict=True):
        assert one.keys() == two.keys()
        assert all(np.array_equal(one[key], two[key]) for key in one)
    cut, uncut = (max((tmp_path / name / "checkpoints").glob("step-*")) for name in ("cut", "whole"))
    assert store.read_stamp(cut) == store.read_stamp(uncut)  # and so each file


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_moments_are_put_together_by_name_in_whatever_order_a_process_holds_them(small, tmp_path, stage):
    def share():
        parallel = fit(small, tmp_path / str(stage), epochs=1).parallel
        before, states = parallel.moments(), parallel._inner.state
        if Ranks.here().rank == 1:
            for flat, state in states.items():
                states[flat] = dict(reversed(state.items()))
        after = parallel.moments()
        return [key for key in before.keys() | after.keys() if not torch.equal(before[key], after[key])]

    assert run_on(2, under(stage, share)) == [[], []]


@pytest.mark.slow
def test_a_checkpoint_holds_no_frozen_weight(small, tmp_path):
    saved(tmp_path / "llm", width=64, layers=3)

    def share():
        done = fit(small, tmp_path / "run", model=frellm(tmp_path / "llm", n_items=small.n_items), epochs=1)
        trained = sum(p.numel() for p in done.model.parameters() if p.requires_grad)
        folder = max((tmp_path / "run/checkpoints").glob("step-*"))
        return trained, sum(file.stat().st_size for file in folder.iterdir())

    for stage in (0, 3):
        for trained, size in run_on(2, under(stage, share)):
            assert 12 * trained <= size <= 1.05 * 12 * trained + 8192


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("kind", ["sasrec", "{}"])
def test_items_spread_unevenly_rank_as_whole_ones(small, tmp_path, monkeypatch, stage, kind):
    saved(tmp_path / "llm", width=32, layers=2)
    monkeypatch.setitem(exact.CHUNK, "cpu", 64)  # of three chunks one process has two
    monkeypatch.setattr(ranking, "PIECE", 64)
    monkeypatch.setattr(scoring, "BLOCK", 16)

    def share(shard):
        fit(small, tmp_path / str(shard), model=model(kind, small, tmp_path / "llm"), shard_items=shard)

    for shard in (False, True):
        run_on(2, under(stage, lambda shard=shard: share(shard)))
    assert metrics(tmp_path / "True") == metrics(tmp_path / "False") != []
