"""Weak scaling: items a second on N processes ÷ (N × those of one), and the share of a step that they spend on each other.

    python tests/bench/scaling.py [--processes 2] [--steps 30] [--items 12101]

Each process trains a SASRec (64-d, two layers, full softmax) on 32 random histories of 50 items a step, by the loop's own
backward and step; then the same without sums over processes.  CPU processes have one thread each and share one machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from distrec import knobs
from distrec.data.batches import Batch
from distrec.engine.launch import join
from distrec.engine.parallel import spread
from distrec.models.sasrec import SasRec
from distrec.runtime import Ranks

ROWS, LENGTH = 32, 50


def worker(steps: int, n_items: int) -> None:
    torch.set_num_threads(1)
    accelerator = join(knobs.Train())
    ranks = Ranks.here()
    torch.manual_seed(ranks.rank)
    model = SasRec(knobs.SasRec(max_len=LENGTH), n_items).to(accelerator.device)
    parallel = spread(accelerator, model, torch.optim.AdamW(model.parameters()), 1.0)
    every = torch.ones(ROWS, LENGTH, dtype=torch.bool)

    def seconds(is_last: bool) -> float:
        items = torch.randint(n_items, (2, ROWS, LENGTH))
        batch = Batch(torch.arange(ROWS), items[0], every, items[1], every).to(accelerator.device)
        ranks.wait()
        started = time.perf_counter()
        parallel.add(batch, 1 / (ROWS * LENGTH), is_last)
        parallel.step(1.0, True)
        return time.perf_counter() - started

    for _ in range(3):
        seconds(True)
    times = [(seconds(True), seconds(False)) for _ in range(steps)]
    together, alone = (statistics.median(side) for side in zip(*times, strict=True))
    if ranks.is_main:
        print(json.dumps({"step": together, "alone": alone}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--items", type=int, default=12101)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.steps, options.items)
        return
    found = {}
    for n in (1, options.processes):
        words = [str(Path(sys.executable).with_name("torchrun")), "--standalone", f"--nproc_per_node={n}", __file__]
        words += ["--worker", f"--steps={options.steps}", f"--items={options.items}"]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        told = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        found[n] = json.loads(told.strip().splitlines()[-1])
        rate = n * ROWS * LENGTH / found[n]["step"]
        print(f"{n} processes: {1000 * found[n]['step']:.0f} ms a step, {rate:.0f} items/s")
    n = options.processes
    figures = {
        "weak_scaling": found[1]["step"] / found[n]["step"],
        "communication": 1 - found[n]["alone"] / found[n]["step"],
    }
    print(json.dumps({**{name: round(value, 3) for name, value in figures.items()}, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
