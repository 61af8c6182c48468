"""A run of a former schedule of learning rates, and a run whose best epoch is not its last."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from distrec import train
from distrec.data import store
from distrec.engine.trainer import SCHEDULE, Trainer
from distrec.jobs import compare, evaluate

WORDS = [
    "data.synthetic.users=80", "data.synthetic.items=60", "data.negatives=0", "model.name=sasrec", "model.d_model=8",
    "train.epochs=3", "train.batch_tokens=200", "train.lr=0.03", "score.bootstrap=0", "train.save_steps=1000",
]  # fmt: skip


def called(main, *words):
    for state in (PartialState, AcceleratorState, GradientState):
        state._reset_state()
    return main([*words])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which a run has trained for three epochs, of which the first was the best by what validation said."""
    folder = tmp_path_factory.mktemp("schedule")
    told = iter([0.9, 0.2, 0.1])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Trainer, "_rank_validation", lambda *_: dict.fromkeys(("ndcg@10", "hr@10"), next(told)))
        assert called(train.main, *WORDS, "out=run") == 0
    return folder


@pytest.fixture(autouse=True)
def _inside(place, monkeypatch):
    monkeypatch.chdir(place)


def former(name):
    """The run as one of the former schedule, under stamps of its own."""
    shutil.copytree("run", name)
    for folder in (Path(name), Path(name, "item_table"), *Path(name, "checkpoints").glob("step-*")):
        stamp = store.read_stamp(folder)
        assert stamp["made_by"].pop("train.schedule") == SCHEDULE
        store.stamp_files(folder, stamp["made_by"], list(stamp["files"]))
    return name


def test_the_test_figures_are_those_of_the_best_checkpoint():
    last = max(Path("run/checkpoints").glob("step-*")).name
    assert json.loads(Path("run/checkpoints", last, "state.json").read_text())["best_checkpoint"] < last
    called(evaluate.main, "out=run", "split=test")
    ranks = pl.read_parquet("run/ranks.parquet")
    assert pl.read_parquet("run/ranks-evaluate-test.parquet").equals(ranks)
    shutil.copytree("run", "last")
    for step in Path("last/checkpoints").glob("step-*"):
        state = json.loads((step / "state.json").read_text())
        (step / "state.json").write_text(json.dumps(state | {"best_checkpoint": last}))
        stamp = store.read_stamp(step)
        store.stamp_files(step, stamp["made_by"], list(stamp["files"]))
    called(evaluate.main, "out=last", "split=test")
    assert not pl.read_parquet("last/ranks-evaluate-test.parquet").equals(ranks)


@pytest.mark.parametrize("is_finished", [True, False])
def test_24_a_run_of_the_former_schedule_is_refused_by_name(is_finished):
    name = former(f"former-{is_finished}")
    if not is_finished:
        (Path(name) / store.STAMP).unlink()
    why = rf"{name} holds another run \(train\.schedule was None, now '{SCHEDULE}'\)"
    with pytest.raises(ValueError, match=why):
        called(train.main, *WORDS, f"out={name}")


def test_24_a_run_of_the_former_schedule_is_still_evaluated():
    name = former("evaluated")
    called(evaluate.main, f"out={name}", "split=test")
    assert pl.read_parquet(f"{name}/ranks-evaluate-test.parquet").equals(pl.read_parquet("run/ranks.parquet"))


def test_24_runs_of_both_schedules_are_no_seeds_of_one_variant():
    name = former("compared")
    compare.main(["run", name, "out=page"])
    settings = json.loads(Path("page/compare.json").read_text())["settings"]
    assert settings["train.schedule"] == [SCHEDULE, "none"]
    torch.manual_seed(0)
