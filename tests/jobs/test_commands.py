"""The commands as a user runs them: exit codes, one-line errors, what lands in a run folder."""

import fcntl
import json
import os
import subprocess
import sys

import polars as pl
import pytest
from conftest import ROOT

from distrec import config as cfg
from distrec import knobs
from distrec.data import store
from distrec.runtime import Ranks

SMALL = [
    "data.synthetic.users=150",
    "data.synthetic.items=120",
    "data.negatives=10",
    "model.d_model=16",
    "train.epochs=2",
    "train.batch_tokens=400",
]


def distrec(*args, cwd, code=0, env=None):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    run = subprocess.run(
        [sys.executable, "-m", "distrec.jobs", *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert run.returncode == code, run.stdout + run.stderr
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which the main job has run, by accelerate."""
    folder = tmp_path_factory.mktemp("user")
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        "1",
        str(ROOT / "distrec" / "train.py"),
        *SMALL,
        "out=runs/a",
    ]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "NDCG@10" in run.stdout
    return folder


def test_a_run_folder_holds_what_others_rely_on(finished):
    out = finished / "runs/a"
    assert cfg.load([str(out / "config.yaml")]).model.d_model == 16
    report = json.loads((out / "test.json").read_text())
    assert {"protocol", "full", "sampled_1_10", "users", "items"} <= report.keys()
    for section in ("full", "sampled_1_10"):
        assert 0 <= report[section]["ndcg@10"] <= report[section]["hr@10"] <= 1
        low, high = report[section]["ndcg@10_ci"]
        assert low <= report[section]["ndcg@10"] <= high
    ranks = pl.read_parquet(out / "ranks.parquet")
    assert ranks.columns[:3] == ["user", "target", "rank"]
    assert ranks.height == report["users"]
    assert (ranks["better"] < 10).mean() == pytest.approx(report["full"]["hr@10"])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {"valid", "test"} <= {line["event"] for line in lines}
    stamp = json.loads((out / "stamp.json").read_text())
    assert stamp["files"]["test.json"]["sha256"] == store.file_digest(out / "test.json")
    assert stamp["made_by"]["model.d_model"] == 16
    store.verify(out / "item_table")


def test_started_again_a_finished_run_is_told_not_repeated(finished):
    before = (finished / "runs/a/test.json").stat().st_mtime_ns
    run = distrec("train", *SMALL, "out=runs/a", cwd=finished)
    assert "finished already" in run.stderr
    assert (finished / "runs/a/test.json").stat().st_mtime_ns == before


def test_another_config_in_the_same_folder_is_refused_by_name(finished):
    run = distrec("train", *SMALL, "out=runs/a", "train.lr=0.5", cwd=finished, code=2)
    assert (
        run.stderr.strip().splitlines()[-1].startswith("error: runs/a holds another run (train.lr was 0.001, now 0.5)")
    )


def test_a_finished_run_that_was_touched_is_refused(finished):
    path = finished / "runs/a/test.json"
    whole = path.read_text()
    path.write_text(whole.replace("hr@10", "hr@11", 1))
    run = distrec("train", *SMALL, "out=runs/a", cwd=finished, code=2)
    assert "runs/a is corrupt: test.json" in run.stderr
    path.write_text(whole)


def test_trackers_take_the_config_and_the_curves(finished):
    distrec("train", *SMALL, "out=runs/tracked", "train.trackers=[tensorboard]", "train.log_steps=1", cwd=finished)
    assert list((finished / "runs/tracked").rglob("events*"))


def test_evaluate_agrees_with_the_run(finished):
    distrec("evaluate", "out=runs/a", "split=test", cwd=finished)
    again = json.loads((finished / "runs/a/evaluate-test.json").read_text())
    assert again["full"] == json.loads((finished / "runs/a/test.json").read_text())["full"]


def test_audit_passes_a_clean_run_and_fails_a_planted_leak(finished):
    run = distrec("audit", *SMALL, "out=runs/a", cwd=finished)
    assert "item_table" in run.stdout
    assert "no leak found" in run.stdout
    import numpy as np
    import safetensors.numpy

    made = store.verify(finished / "runs/a/item_table")["made_by"]
    tensors = safetensors.numpy.load_file(finished / "runs/a/item_table/item_table.safetensors")

    def fill(folder):
        safetensors.numpy.save_file(
            {"seen": tensors["seen"] + np.eye(1, len(tensors["seen"]), 7, dtype=np.int64)[0] * 9},
            folder / "t.safetensors",
        )

    store.write(finished / "runs/a/planted", made, fill)
    run = distrec("audit", *SMALL, "out=runs/a", cwd=finished, code=1)
    assert "LEAK  planted read held-out interactions: item " in run.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["trian"], "did you mean 'train'?"),
        (["train", "train.lrr=1"], "did you mean 'train.lr'?"),
        (["train", "nope.yaml"], "nope.yaml"),
        (["prepare", "data.source=movielens", "data.path=nowhere"], "nowhere lacks u.data"),
        (["evaluate", "out=nowhere"], "is no run folder"),
        (["evaluate", "split=train"], "it is valid or test"),
        (["evaluate", "model.name=markov"], "not model.name"),
        (["config", "sedd=1"], "did you mean 'seed'?"),
        (["train", "data.path=x.csv"], "need a data.source"),
        (["audit", "out=nope"], "out=nope: no such folder"),
        (["train", "data.source=table", "data.path=x.csv"], "no such file"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(args, says, tmp_path):
    run = distrec(*args, cwd=tmp_path, code=2)
    assert says in run.stderr
    assert run.stderr.startswith("error: ")
    assert len(run.stderr.strip().splitlines()) == 1


def test_help_comes_at_once_and_says_how(tmp_path):
    for job in ("prepare", "train", "evaluate", "audit"):
        shown = distrec(job, "--help", cwd=tmp_path).stdout
        assert f"distrec {job}" in shown or "distrec/train.py" in shown
        assert "=" in shown
    assert "prepare" in distrec(cwd=tmp_path).stdout
    assert "polars" not in distrec("--help", cwd=tmp_path).stderr


def test_too_few_processes_joined_is_refused(monkeypatch):
    """Were a launcher not understood, each rank would train alone, silently."""
    from distrec.engine import launch

    class Alone:
        num_processes = 1

        def __init__(self, **_):
            pass

    monkeypatch.setattr(launch, "Accelerator", Alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started but 1 joined"):
        launch.join(knobs.Train())


def test_a_launch_of_another_precision_is_refused(monkeypatch):
    from distrec.engine import launch

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    for precision in ("no", "bf16"):
        with pytest.raises(ValueError, match=f"mixed_precision=fp16, the config train.precision={precision}"):
            launch.join(knobs.Train(precision=precision))


def two(*program, cwd):
    """A program on two processes, which must not wait for each other for ever."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *program]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120, env=environment)


@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_jobs_in_one_folder_are_refused(tmp_path, size):
    import fcntl

    (tmp_path / "runs/b").mkdir(parents=True)
    with (tmp_path / "runs/b/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if size == 1:
            run = distrec("train", *SMALL, "out=runs/b", cwd=tmp_path, code=2)
        else:
            run = two(str(ROOT / "distrec/train.py"), *SMALL, "out=runs/b", cwd=tmp_path)
            assert run.returncode != 0
    assert run.stderr.count("another process is training in runs/b") == 1
    assert not (tmp_path / "runs/b/checkpoints").exists()


FAILING = """
import os, sys, time
from distrec.runtime import run

def main(argv):
    rank = os.environ["RANK"]
    if rank == argv[0] or argv[0] == "all":
        time.sleep(2 * (rank == "0"))  # the main one is late
        raise ValueError("no such thing")
    time.sleep(60)

run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "told"), [("all", "error: no such thing"), ("0", "error: no such thing"), ("1", "error on rank 1: no such thing")]
)  # fmt: skip
def test_what_ends_a_launch_is_told_once_whoever_met_it(tmp_path, who, told):
    (tmp_path / "failing.py").write_text(FAILING)
    ended = two("failing.py", who, cwd=tmp_path)
    assert [line for line in ended.stderr.splitlines() if "no such thing" in line] == [told]


def test_a_run_folder_that_cannot_be_written_to_is_told_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    places = ["file", "file/run"]
    (tmp_path / "disk").mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "none", tmp_path / "disk"], capture_output=True, check=False
    )
    if mount.returncode == 0:  # permissions do not bind root
        places += ["disk", "disk/run"]
    try:
        for out in places:
            run = distrec("train", *SMALL, f"out={out}", cwd=tmp_path, code=2)
            (line,) = run.stderr.splitlines()
            assert line.startswith(f"error: out={out}: ")
            assert line.endswith(f"{out.removesuffix('/run')} is no folder that can be written to")
    finally:
        if mount.returncode == 0:
            subprocess.run(["umount", tmp_path / "disk"], check=True)
    assert not (tmp_path / "artefacts").exists()


def test_a_signal_after_the_work_is_ignored_as_before_it(tmp_path):
    """A job's scheduler sends it again and again."""
    program = (
        "import os, signal\n"
        "from distrec.runtime import Stop\n"
        "with Stop() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    assert stop()\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    command = ["bash", "-c", 'trap "" USR1; exec "$0" -c "$1"', sys.executable, program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("finishing this step") == 1


def test_a_broken_stamp_does_not_hide_whose_folder_it_is(tmp_path):
    """The broken checkpoint is left to the fallback; the next good one still tells another run's settings."""
    from distrec.jobs.parts import training

    config = cfg.load([])
    for n in (1, 2):
        store.write(tmp_path / f"checkpoints/step-0000000{n}-0000", {"train.lr": 0.1}, lambda folder: None)
    (tmp_path / "checkpoints/step-00000001-0000/stamp.json").write_text("{")
    os.close(training.enter(tmp_path, config, {"train.lr": 0.1}, Ranks()))
    with pytest.raises(ValueError, match=r"holds another run \(train\.lr was 0\.1, now 0\.2\)"):
        training.enter(tmp_path, config, {"train.lr": 0.2}, Ranks())


@pytest.mark.parametrize("name", ["popularity", "item_knn", "markov"])
def test_counting_models_go_through_the_same_door(finished, name):
    data = [arg for arg in SMALL if arg.startswith("data")]
    run = distrec("train", *data, f"model.name={name}", f"out=runs/{name}", cwd=finished)
    assert "NDCG@10" in run.stdout
    assert not (finished / f"runs/{name}/checkpoints").exists()


def test_movielens_raw_files_to_figures_in_one_command(real, tmp_path):
    args = [
        f"data.path={real('movielens_100k') / 'raw'}",
        "data.source=movielens",
        "train.epochs=1",
        "model.d_model=16",
        "out=runs/ml",
    ]
    distrec("train", *args, cwd=tmp_path)
    report = json.loads((tmp_path / "runs/ml/test.json").read_text())
    assert (report["users"], report["items"]) == (943, 1349)


@pytest.mark.slow
def test_two_real_processes_give_the_figures_of_one(finished):
    """torchrun with gloo, end to end."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(ROOT / "distrec" / "train.py"),
        *SMALL,
        "model.dropout=0",
        "out=runs/two",
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=finished, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    distrec("train", *SMALL, "model.dropout=0", "out=runs/one", cwd=finished)
    one, two = (
        json.loads((finished / f"runs/{name}/test.json").read_text())["full"]["ndcg@10"] for name in ("one", "two")
    )
    assert one == pytest.approx(two, abs=2e-3)


def test_a_finished_run_is_for_everybody(finished):
    """Runs that build on the same SASRec read it at the same time."""
    with (finished / "runs/a/.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "is finished already" in distrec("train", *SMALL, "out=runs/a", cwd=finished).stderr
