"""Sweeps as a user starts them: what is killed goes on, and the table is that of a sweep that was left alone."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from sweeping import processes, started, swept, table, until

from distrec import config as cfg
from distrec.data import store
from distrec.runtime import Ranks
from tune import report
from tune.space import Sweep
from tune.trial import Busy, Refused, Trial, run

pytest.importorskip("ray", reason="needs Ray Tune: pip install 'distrec[tune]'")
pytest.importorskip("optuna", reason="needs Optuna: pip install 'distrec[tune]'")


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


CODES = ["model.name=tiger", "model.d_ff=32", "model.n_heads=2", "embed.encoder=builtin", "codes.gate=false", "codes.n_init=1", "codes.levels=2"]  # fmt: skip


@pytest.mark.slow
def test_trials_that_need_the_same_codes_make_them_once(tmp_path):
    words = [*CODES, "train.epochs=1", "sweep.concurrent=2", "sweep.cpus=0.5", f"sweep.out={tmp_path}/s"]
    space = "{codes.size: [8, 16], train.lr: [0.001, 0.003], model.dropout: [0.1]}"
    told = swept(tmp_path, *words, f"sweep.space={space}")
    assert pl.read_parquet(tmp_path / "s/trials.parquet")["status"].to_list() == ["done"] * 4
    logs = "".join(path.read_text() for path in (tmp_path / "s/trials").glob("*/log.txt"))
    assert logs.count("into 2 × 8 codes") == logs.count("into 2 × 16 codes") == 1
    assert told.count("embedding 60 texts") == 1
    assert "embedding 60 texts" not in logs
    assert {name: len(list((tmp_path / "art").glob(f"{name}-*"))) for name in ("codes", "vectors")} == {
        "codes": 2,
        "vectors": 1,
    }


def test_another_at_work_is_no_refusal(tmp_path):
    def ended(says):
        program = f"import sys; print({says!r}, file=sys.stderr); sys.exit(2)"
        return list(run([sys.executable, "-c", program], {}, Trial({}, 0, tmp_path, tmp_path), tmp_path))

    with pytest.raises(Refused, match="no such file"):
        ended("error: no such file")
    with store.alone(tmp_path / "codes-x", Ranks()), pytest.raises(ValueError, match="process") as busy:  # noqa: SIM117
        with store.alone(tmp_path / "codes-x", Ranks()):
            pass
    with pytest.raises(Busy):
        ended(f"error: {busy.value}")


@pytest.mark.slow
def test_ray_sees_every_evaluation_and_the_best_keep_their_checkpoints(tmp_path):
    swept(tmp_path, f"sweep.out={tmp_path}/s", "sweep.keep=2", "train.patience=100")
    assert sorted(reports(tmp_path / "s/ray")) == [4] * 4
    for path in (tmp_path / "s/trials").glob("*/metrics.jsonl"):
        assert path.read_text().count('"event": "valid"') == 4
    kept = {path.parent.name for path in (tmp_path / "s/trials").glob("*/checkpoints")}
    found = pl.read_parquet(tmp_path / "s/trials.parquet").sort("value", descending=True)
    assert kept == set(found["folder"].to_list()[:2])


def reports(folder):
    """How often each trial has reported, by Ray's own book."""
    (book,) = folder.glob("*/experiment_state-*.json")
    return [json.loads(state)["last_result"]["training_iteration"] for _, state in json.loads(book.read_text())["trial_data"]]  # fmt: skip


@pytest.mark.slow
def test_ray_listens_on_loopback_alone_and_says_nothing(tmp_path):
    driver = started(tmp_path, f"sweep.out={tmp_path}/s", RAY_ADDRESS="192.0.2.9:6379")
    until(lambda: processes(tmp_path / "s"))
    places = listening(driver.pid)
    assert driver.wait(timeout=400) == 0
    assert len(places) > 3
    assert {place for place, _ in places} == {"127.0.0.1"}
    assert 8265 not in {port for _, port in places}
    told = (tmp_path / "sweep.log").read_text()
    assert "Configuration for experiment" not in told
    assert "ensorboard" not in told
    assert "4 of 4: done" in told
    assert "left)" in told


def listening(driver):
    """(address, port) of every socket on which a process and its descendants listen."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    family = {driver}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    told = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    own = [line.split()[3] for line in told if any(f"pid={member}," in line for member in family)]
    return {
        (place.rpartition(":")[0].strip("[]").removeprefix("::ffff:"), int(place.rpartition(":")[2])) for place in own
    }


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["sweep.processes=999"], "this machine has"),
        pytest.param(["sweep.gpus=99"], "this machine has", marks=pytest.mark.slow),
        pytest.param(["sweep.nodes=2"], "wants a Ray cluster", marks=pytest.mark.slow),
        (["--resume"], "holds no sweep to go on with"),
        pytest.param(["sweep.out=file"], "file: File exists", marks=pytest.mark.slow),
        pytest.param(["sweep.out=file/s"], "file/s: Not a directory", marks=pytest.mark.slow),
    ],
)
def test_what_cannot_be_is_told_before_anything_starts(tmp_path, words, why):
    (tmp_path / "file").touch()
    told = swept(tmp_path, "sweep.out=s", *words, code=2)
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert why in told
    assert not (tmp_path / "s").exists()


def ended(folder, point, seed, value, status="done"):
    at = folder / "trials" / f"{point}-{seed}"
    at.mkdir(parents=True)
    told = {"point": {"train.lr": point}, "seed": seed, "status": status, "why": "", "value": value, "epoch": 1, "epochs": 2, "repeats": 0,
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
