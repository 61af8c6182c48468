"""The visit to a GPU is ready: every section is there, and the cheap ones run to their end on the CPU."""

import json
import subprocess

import pytest
import torch
from conftest import ROOT
from device import check
from device.steps import kernels_of_steps, run_steps, seconds_a_step, steps_an_epoch, trainer_of
from device.visit import SECTIONS, Visit, run, visit

from distrec import knobs


@pytest.fixture
def rehearsal(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    fresh = Visit(out=tmp_path, work=tmp_path / "work", only="sasrec ce", data=tmp_path)
    for name, value in vars(fresh).items():
        monkeypatch.setattr(visit, name, value)
    return visit


def test_every_section_has_its_turn():
    assert set(check.ORDER) == SECTIONS.keys()
    assert len(check.ORDER) == len(SECTIONS) == 14


@pytest.mark.parametrize("name", ["ceilings", "filters", "models"])
def test_cheap_sections_run_to_their_end_on_the_cpu(rehearsal, name):
    run(name)
    result = json.loads((rehearsal.out / "result.json").read_text())[name]
    assert "FAILED" not in json.dumps(result)
    assert len(result) > 1
    if name == "models":
        assert result["sasrec ce"]["loss"] == 0.0  # the device is the CPU
        assert result["sasrec ce"]["gradient"] == 0.0


def test_a_section_that_fails_is_reported_and_leaves_the_others_alone(rehearsal, monkeypatch):
    def raises():
        raise ZeroDivisionError("by zero")

    monkeypatch.setitem(SECTIONS, "filters", (1.0, raises))
    run("filters")
    run("ceilings")
    result = json.loads((rehearsal.out / "result.json").read_text())
    assert result["filters"]["FAILED"] == "ZeroDivisionError: by zero"
    assert "copy on the device" in result["ceilings"]


def test_a_trainer_computes_as_its_settings_say(rehearsal, small):
    config = knobs.SasRec(d_model=16, max_len=20, dropout=0.0)
    for precision in ("no", "bf16"):
        trainer = trainer_of(small, config, f"precision-{precision}", precision=precision)
        assert trainer.accelerator.mixed_precision == precision


def test_steps_are_made_by_the_house_s_own_loop(rehearsal, small):
    config = knobs.SasRec(d_model=16, max_len=20, dropout=0.0)
    trainer = trainer_of(small, config, "steps", batch_tokens=300)
    start = trainer.model.item.weight.detach().clone()
    before = []
    run_steps(trainer, 3, before.append)
    assert before[:4] == [0, 1, 2, 3]
    assert trainer.progress.step >= 3
    assert not torch.equal(trainer.model.item.weight, start)
    assert steps_an_epoch(trainer) == 4
    assert 0 < seconds_a_step(trainer_of(small, config, "timed", batch_tokens=300), 5, warm=2) < 1
    assert kernels_of_steps(trainer_of(small, config, "profiled", batch_tokens=300), 5, warm=2) == (0, 0.0)


@pytest.mark.slow
def test_the_whole_rehearsal(tmp_path):
    done = subprocess.run(
        ["make", "device-rehearsal", f"OUT={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "FAILED" not in (tmp_path / "result.json").read_text()
