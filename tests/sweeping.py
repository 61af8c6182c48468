"""What the tests of sweeps share."""

import os
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
from conftest import ROOT

SMALL = [
    "data.synthetic.users=150", "data.synthetic.items=60", "data.negatives=0", "model.name=sasrec", "model.d_model=16",
    "model.n_layers=1", "train.epochs=4", "train.batch_tokens=500", "train.save_steps=1", "score.bootstrap=0",
    "sweep.space.train.lr=[0.001, 0.003]", "sweep.space.model.dropout=[0.1, 0.3]",
]  # fmt: skip


def started(folder, *words, **more):
    command = [sys.executable, str(ROOT / "tune/sweep.py"), *SMALL, "data.root=art", *words]
    log = (folder / "sweep.log").open("ab")
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, **more}, stdout=log, stderr=log, start_new_session=True
    )


def swept(folder, *words, code=0, **more):
    done = started(folder, *words, **more).wait(timeout=600)
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
