"""Words with blanks, quotes and signs come through Slurm's scripts as they were given."""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

WORDS = [
    "data.text={title}. {brand} #1", "data.path=/a b/[x] $HOME/`c`.csv", "codes.category=it's", 'data.columns.user="u"',
    "data.columns.item=ä\\n☃", "data.columns.time=a\tb", "embed.revision=*", "train.trackers=[wandb, tensorboard]",
]  # fmt: skip
OUT = "out=/runs/try #2 'x'"


@pytest.fixture
def called(tmp_path):
    """What a program was called with by a script in a job of one node; its stand-in writes it down."""
    bin = tmp_path / "bin of mine"
    bin.mkdir()
    log = tmp_path / "log"
    say = f'printf "%s\\0" "$(basename "$0")" "$@" >> "{log}"; printf "\\0" >> "{log}"'
    programs = {
        "torchrun": say, "accelerate": say, "sbatch": f"{say}\necho 7", "python": say,
        "distrec": f'{say}\n[ "$1" != config ] || printf "model:\\n  name: tiger\\ntrain:\\n"',
        "scontrol": '[ "$1" = show ] && echo n1 || echo " NodeAddr=10.0.0.1 "',
        "srun": 'while [[ $1 == --* ]]; do shift; done\nSLURM_NODEID=0 exec "$@"', "sleep": "exit 0", "ray": "exit 0",
    }  # fmt: skip
    for name, text in programs.items():
        (bin / name).write_text(f"#!/bin/bash\n{text}\n")
        (bin / name).chmod(0o755)

    def run(script, *words, code=0, **env):
        job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_CPUS_PER_NODE": "8"}
        done = subprocess.run(
            ["bash", str(ROOT / "slurm" / script), *words], cwd=ROOT, capture_output=True, text=True, check=False,
            env={"PATH": f"{bin}:{os.environ['PATH']}", "DISTREC_BIN": str(bin), **job, **env},
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        calls = log.read_text().split("\0\0") if log.exists() else []
        return [call.split("\0") for call in calls if call]

    return run


@pytest.mark.parametrize("launch", ["", "launch/zero2.yaml"])
def test_training_gets_its_words(called, launch):
    (call,) = called("train.sbatch", *WORDS, OUT, DISTREC_LAUNCH=launch)
    assert call[-len(WORDS) - 2 :] == ["distrec/train.py", *WORDS, OUT]


def test_only_a_word_of_its_own_is_a_run_folder(called):
    assert called("train.sbatch", "data.text=x out=y", code=2) == []


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_every_stage_of_a_pipeline_gets_its_words(called, tmp_path, locale):
    calls = called("pipeline.sh", *WORDS, OUT, LC_ALL=locale)
    jobs = [call for call in calls if call[0] == "sbatch"]
    assert len(jobs) == 5
    assert all(call[-len(WORDS) - 1 :] == [*WORDS, OUT] for call in jobs[1:4])
    assert jobs[-1][-1] == OUT
    wrapped = jobs[0][jobs[0].index("--wrap") + 1]
    (tmp_path / "log").unlink()
    subprocess.run(["sh", "-c", wrapped], check=True)  # as sbatch does
    assert (tmp_path / "log").read_text().rstrip("\0").split("\0") == ["distrec", "prepare", *WORDS, OUT]


def test_a_sweep_is_found_at_home(called, tmp_path):
    (tmp_path / "s #1").mkdir()
    for is_there in (False, True):
        if is_there:
            Path(tmp_path, "s #1/sweep.json").write_text("{}")
        call = called("tune.sbatch", *WORDS, "sweep.out=~/s #1", HOME=str(tmp_path))[-1]
        assert call[: len(WORDS) + 2] == ["python", "tune/sweep.py", *WORDS]
        assert ("--resume" in call) == is_there
