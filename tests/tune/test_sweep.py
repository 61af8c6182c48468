"""Sweeps as a user starts them: what is killed goes on, and the table is that of a sweep that was left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from conftest import ROOT

from distrec import config as cfg
from tune import report
from tune.space import Sweep

pytest.importorskip("ray", reason="needs Ray Tune: pip install 'distrec[tune]'")
pytest.importorskip("optuna", reason="needs Optuna: pip install 'distrec[tune]'")

SMALL = [
    "data.synthetic.users=150", "data.synthetic.items=60", "data.negatives=0", "model.name=sasrec", "model.d_model=16",
    "model.n_layers=1", "train.epochs=4", "train.batch_tokens=500", "train.save_steps=1", "score.bootstrap=0",
    "sweep.space.train.lr=[0.001, 0.003]", "sweep.space.model.dropout=[0.1, 0.3]",
]  # fmt: skip


def started(folder, *words):
    command = [sys.executable, str(ROOT / "tune/sweep.py"), *SMALL, "data.root=art", *words]
    log = (folder / "sweep.log").open("ab")
    return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def swept(folder, *words, code=0):
    done = started(folder, *words).wait(timeout=600)
    told = (folder / "sweep.log").read_text()
    assert done == code, told[-3000:]
    return told


def table(root):
    found = pl.read_parquet(root / "trials.parquet")
    return found.sort(["train.lr", "model.dropout"]).drop("folder")


def until(is_so, seconds=240):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def processes(root):
    """Of the trials of a sweep: (pid, command line)."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                line = Path(f"/proc/{entry.name}/cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            if "distrec/train.py" in line and str(root) in line:
                found.append((int(entry.name), line))
    return found


@pytest.mark.slow
def test_a_sweep_that_was_killed_ends_as_one_that_was_not(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    told = swept(tmp_path, f"sweep.out={whole}")
    assert "best: " in told
    driver = started(tmp_path, f"sweep.out={cut}")
    until(lambda: any((cut / "trials").glob("*/checkpoints/step-*/stamp.json")))
    os.kill(processes(cut)[0][0], signal.SIGKILL)  # a trial: Ray starts it again
    until(lambda: any((cut / "trials").glob("*/trial.json")))
    until(lambda: processes(cut))
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    until(lambda: not processes(cut), 60)
    assert 0 < len(list((cut / "trials").glob("*/trial.json"))) < 4
    swept(tmp_path, f"sweep.out={cut}", code=2)
    assert "--resume goes on with it" in (tmp_path / "sweep.log").read_text()
    swept(tmp_path, f"sweep.out={cut}", "--resume")
    assert table(cut).equals(table(whole))
    assert "resuming step-" in "".join(path.read_text() for path in (cut / "trials").glob("*/log.txt"))
    assert len(list((cut / "trials").glob("*/checkpoints"))) == 1
    best = cfg.load([str(cut / "best.yaml")])
    top = max(table(whole).to_dicts(), key=lambda row: row["value"])
    assert (best.train.lr, best.model.dropout) == (top["train.lr"], top["model.dropout"])


@pytest.mark.slow
def test_trials_of_two_processes_run_side_by_side(tmp_path):
    swept(tmp_path, f"sweep.out={tmp_path}/two", "sweep.processes=2", "sweep.concurrent=2", "sweep.cpus=0.5")
    assert table(tmp_path / "two")["status"].to_list() == ["done"] * 4
    swept(tmp_path, f"sweep.out={tmp_path}/one")
    one, two = (table(tmp_path / name)["value"].to_list() for name in ("one", "two"))
    assert one == pytest.approx(two, abs=0.05)


@pytest.mark.slow
def test_tpe_and_asha_stop_the_worse_and_go_on(tmp_path):
    words = ["sweep.search=tpe", "sweep.trials=4", "sweep.scheduler=asha", "sweep.grace=1", "sweep.reduction=2",
             "sweep.space.train.lr={low: 1.0e-4, high: 1.0e-2, log: true}", f"sweep.out={tmp_path}/s"]  # fmt: skip
    swept(tmp_path, *words)
    found = table(tmp_path / "s")
    assert len(found) == 4
    assert set(found["status"]) <= {"done", "stopped"}
    first = found["train.lr"].to_list()
    swept(tmp_path, *words, "sweep.trials=6", "--resume")
    again = table(tmp_path / "s")["train.lr"].to_list()
    assert len(set(again)) == 6
    assert set(first) < set(again)


@pytest.mark.slow
def test_a_trial_that_cannot_be_trained_ends_by_itself(tmp_path):
    words = ["sweep.space.train.lr=[0.003, 1.0e+30]", "sweep.space.model.dropout=[0.1]", "train.max_skips=2"]
    swept(tmp_path, *words, f"sweep.out={tmp_path}/s")
    found = pl.read_parquet(tmp_path / "s/trials.parquet").sort("train.lr").to_dicts()
    assert [row["status"] for row in found] == ["done", "refused"]
    assert "not finite" in found[1]["why"]


def test_too_much_for_this_machine_is_told_at_once(tmp_path):
    swept(tmp_path, "sweep.processes=999", f"sweep.out={tmp_path}/s", code=2)
    assert "this machine has" in (tmp_path / "sweep.log").read_text()
    assert not (tmp_path / "s").exists()


def ended(folder, point, seed, value, status="done"):
    at = folder / "trials" / f"{point}-{seed}"
    at.mkdir(parents=True)
    told = {"point": {"train.lr": point}, "seed": seed, "status": status, "why": "", "value": value, "epoch": 1, "epochs": 2,
            "valid": {"ndcg@10": value, "mrr": value} if value is not None else {}}  # fmt: skip
    (at / "trial.json").write_text(json.dumps(told))


def test_a_point_is_the_mean_of_its_seeds_and_a_lost_seed_is_not_left_out(tmp_path):
    for seed, value in enumerate((0.2, 0.4)):
        ended(tmp_path, 0.001, seed, value)
    ended(tmp_path, 0.003, 0, 0.9)
    ended(tmp_path, 0.003, 1, None, "failed")
    points = report.by_point(report.ended(tmp_path))
    assert points[0]["point"] == {"train.lr": 0.001}
    assert points[0]["mean"] == pytest.approx(0.3)
    assert points[1]["mean"] is None
    text = report.write(tmp_path, Sweep(space={}, seeds=(0, 1)), {})
    assert "| 0.003 | – | – | 1 done, 1 failed |" in text
    assert {path.name for path in tmp_path.glob("*.png")} == {"best.png", "parallel.png", "sensitivity-train.lr.png"}
