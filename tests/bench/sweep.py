"""What a sweep costs over the same trials as bare commands: seconds until the first starts, and time of each.

    python tests/bench/sweep.py [--rounds 3] [--trials 4] [--users 3000] [--epochs 20]

A trial trains a SASRec on the built-in catalogue, one after the other, on one thread.  A round is all trials bare, then all
as a sweep with sweep.concurrent=1, on data prepared before.  A trial of the sweep lasts until the next one starts; the
start-up is what passes before the first, without the check of the prepared data (`distrec prepare`, timed beside it).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}


def seconds(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, env=ENVIRONMENT, capture_output=True, check=True)
    return time.perf_counter() - started


def swept(words: list[str], rates: list[float], out: Path) -> tuple[float, list[float], list[float], float]:
    """(seconds before the first trial, of each trial but the last, between each and the next, from the last one's end)."""
    began = time.time()
    seconds("tune/sweep.py", *words, f"sweep.space.train.lr={rates}", f"sweep.out={out}")
    ended = time.time()
    starts = sorted(path.stat().st_mtime for path in out.glob("trials/*/.lock"))
    ends = sorted(path.stat().st_mtime for path in out.glob("trials/*/trial.json"))
    gaps = [start - end for end, start in zip(ends, starts[1:], strict=False)]
    return starts[0] - began, [b - a for a, b in pairwise(starts)], gaps, ended - ends[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--users", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    rates = [0.001 * (1 + i) for i in range(options.trials)]
    bare, firsts, trials, gaps, lasts, prepares = [], [], [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        words = ["model.name=sasrec", f"data.synthetic.users={options.users}", f"data.root={root}/artefacts"]
        words += [f"train.epochs={options.epochs}", "train.patience=1000"]
        seconds("-m", "distrec.jobs", "prepare", *words)
        for n in range(options.rounds):
            prepares.append(seconds("-m", "distrec.jobs", "prepare", *words))
            for i, rate in enumerate(rates):
                bare.append(seconds("distrec/train.py", *words, f"train.lr={rate}", "seed=0", f"out={root}/bare-{n}-{i}"))  # fmt: skip
            first, each, between, last = swept(words, rates, root / f"sweep-{n}")
            firsts.append(first)
            trials += each
            gaps += between
            lasts.append(last)
    middle = {
        "a bare run": statistics.median(bare),
        "a trial of the sweep, until the next starts": statistics.median(trials),
        "of these, between its end and the next one's start": statistics.median(gaps),
        "before the first trial": statistics.median(firsts),
        "of these, distrec prepare": statistics.median(prepares),
        "after the last": statistics.median(lasts),
    }
    for name, value in middle.items():
        print(f"{name:<52} {value:6.2f} s")
    one, swept_one, gap, before, prepare, after = middle.values()
    figures = {
        "trial": one,
        "overhead_share": swept_one / one - 1,
        "gap_s": gap,
        "startup_s": before - prepare,
        "end_s": after,
    }
    print(json.dumps({**{name: round(value, 3) for name, value in figures.items()}, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
