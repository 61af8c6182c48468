"""python tune/sweep.py FILE.yaml … [section.key=value …] [--resume]

Searches keys of a config: sweep.space says which and where (tune/space.py explains each key of the section `sweep`).  A trial
is the launch that a user would start, its figure the validation split's over all items, never the test split's.

  sweep.search=grid|random|tpe   sweep.trials=20   sweep.seeds=[0,1,2] (of a grid)   sweep.scheduler=none|asha
  sweep.concurrent=1   trials at a time   sweep.processes=1   of a trial   sweep.cpus=1 sweep.gpus=0   of a process
  sweep.launch=launch/zero2.yaml   sweep.nodes=2 sweep.address=auto   on a Ray cluster (slurm/tune.sbatch)
  sweep.out=DIR   the table (trials.md, trials.parquet), pictures, best.yaml; the trials' run folders below it
  --resume        go on with the sweep of that folder after a kill; a trial goes on from its checkpoint, a failed one again

Example:  python tune/sweep.py configs/tune/tone_sigma_taps.yaml sweep.concurrent=2

Exit codes: 0 done · 1 no trial came to a figure · 2 wrong usage or input · 75 stopped by a signal (--resume goes on).
"""

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from distrec import config as cfg
from distrec import knobs
from distrec.data import prepared, store
from distrec.engine.evaluation.scoring import PROTOCOL
from distrec.engine.trainer import SCHEDULE
from distrec.runtime import DONE, FAILED, REQUEUE, log, run, write_atomically
from tune import report
from tune.space import Job, drawn, grid, load
from tune.trial import ENDED, Trial


class Asked(Exception):
    """To stop, by a signal."""


def main(argv: Sequence[str]) -> int:
    resume = "--resume" in argv
    job, space = load([arg for arg in argv if arg != "--resume"])
    sweep, root = job.sweep, job.sweep.out
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("optuna") is None:
        raise ValueError("a sweep needs Ray Tune and Optuna: pip install 'distrec[tune]'")
    from distrec.engine.launch import check_trackers
    from tune import cluster, search

    tried: Any = space.get("train.trackers", ())
    for trackers in ((), *tried):
        check_trackers(replace(job.train, trackers=(*job.train.trackers, *trackers)))
    if sweep.address is None:
        cluster.check_machine(sweep, *cluster.machine())
    shared = cfg.shared(job)
    enter(root, job, shared, resume)
    for told in report.ended(root) if resume else ():
        if told["status"] in ("failed", "refused"):  # another try
            (root / "trials" / told["folder"] / ENDED).unlink()
    if sweep.search == "grid":
        trials = [Trial.of(point, seed, root) for point in grid(space) for seed in sweep.seeds]
    elif sweep.search == "random":
        trials = [Trial.of(point, sweep.seeds[0], root) for point in drawn(space, sweep.trials, sweep.seed)]
    else:
        trials = [Trial.of(told["point"], told["seed"], root) for told in report.ended(root)]
    left = sum(not trial.has_ended for trial in trials) if sweep.search != "tpe" else sweep.trials - len(trials)
    log(f"{root}: {left} trials to run, {sum(trial.has_ended for trial in trials)} have ended")
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGUSR1, _stop)
    try:
        if left > 0:
            cluster.join(sweep)
            prepare(job, space, root)
            check_data(root)
            search.search(sweep, space, trials, root)
    except (Asked, KeyboardInterrupt):
        log("stopped; the same command with --resume goes on")
        return REQUEUE
    except search.Lost as error:
        log(f"{error}; the same command with --resume goes on")
        return FAILED
    finally:
        cluster.leave()
    found = report.by_point(report.ended(root))
    prune(root, sweep.keep)
    print(report.write(root, sweep, shared), end="")
    if not found or found[0]["mean"] is None:
        return FAILED
    print(f"best: {root / 'best.yaml'}")
    return DONE


def enter(root: Path, job: Job, shared: dict[str, object], resume: bool) -> None:
    """Take the folder: one sweep a folder.   Raises: ValueError when it holds another, this one without --resume, or none with it."""
    sweep = {key: getattr(job.sweep, key) for key in ("space", "search", "seeds", "metric")}
    config = {**shared, "data": {**cfg.plain(job.data), "root": None}}
    mine = json.dumps({"sweep": sweep, "schedule": SCHEDULE, "protocol": PROTOCOL, "config": config}, sort_keys=True)
    stamp = root / "sweep.json"
    if resume and not stamp.exists():
        raise ValueError(f"{root} holds no sweep to go on with: the same command without --resume starts one")
    if stamp.exists():
        if stamp.read_text(encoding="utf-8") != mine:
            raise ValueError(
                f"{root} holds another sweep (space, search, seeds, config, the protocol of its figures or the schedule of learning rates differ): choose another sweep.out=DIR"
            )
        if not resume and (root / "trials").exists():
            raise ValueError(f"{root} holds this sweep already: --resume goes on with it")
    root.mkdir(parents=True, exist_ok=True)
    write_atomically(root / "base.yaml", yaml.safe_dump(shared, sort_keys=False))
    write_atomically(stamp, mine)


def prepare(job: Job, space: Iterable[str], root: Path) -> None:
    """Make what all trials read, once: data, vectors, and codes or the SASRec, unless the space changes them.

    Where trials need the same of what it changes, the first makes it and the others wait.
    """
    jobs = ["prepare"]
    changed = {key.split(".")[0] for key in space}
    if isinstance(job.model, knobs.Frellm):
        jobs += ["filter"]
    elif isinstance(job.model, knobs.Tiger | knobs.Tone) and "embed" not in changed:
        jobs += ["embed" if "codes" in changed else "quantize"]
    for name in jobs:
        done = subprocess.run([sys.executable, "-m", "distrec.jobs", name, str(root / "base.yaml")], check=False)
        if done.returncode:
            raise ValueError(f"distrec {name} ended with code {done.returncode}: what all trials read is not there")


def check_data(root: Path) -> None:
    """Raises: ValueError when what all trials read is no more what the first ones read."""
    data = store.content(prepared.prepare(cfg.load([str(root / "base.yaml")]).data))
    stamp = root / "data.sha256"
    if stamp.exists() and stamp.read_text() != data:
        raise ValueError(
            f"{root}: the data have changed since its first trials, with which later ones would stand in one table: "
            "choose another sweep.out=DIR"
        )
    write_atomically(stamp, data)


def prune(root: Path, keep: int) -> None:
    """Leave checkpoints to the best trials alone; figures and logs of all stay."""
    ranked = sorted(report.ended(root), key=lambda trial: 0.0 if trial["value"] is None else -trial["value"] - 1)
    for trial in ranked[keep:]:
        shutil.rmtree(root / "trials" / trial["folder"] / "checkpoints", ignore_errors=True)


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise Asked


if __name__ == "__main__":
    run(main, __doc__)
