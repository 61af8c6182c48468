"""P18: seconds to commit a checkpoint of 200 MB (written, hashed, synced, renamed); P18_stall: the share of a minute.

P18_cpu, P18_cpu_async, P18_cpu_call: seconds by which one save makes training steps on these cores longer, in turn and in
the background (train.async_save), and those of the latter's call; P18_wait…: the same for steps that leave the cores
alone, as those of a GPU do.

    python tests/bench/checkpoint.py [--rounds 5] [--mb 200] [--folder .]

The peers in the same run: one file of the same bytes, written, hashed and synced; the steps without a save.  Medians,
in turn.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from distrec.engine.checkpoint import Checkpoints, Progress
from distrec.engine.parallel import Copies


def commit(checkpoints: Checkpoints, held: Copies, n: int) -> float:
    started = time.perf_counter()
    checkpoints.save(held, Progress(step=n))
    return time.perf_counter() - started


def bare(folder: Path, data: bytes) -> float:
    started = time.perf_counter()
    with (folder / "bare").open("wb") as file:
        file.write(data)
        hashlib.sha256(data).digest()
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - started


def lost(folder: Path, rounds: int, held: Copies, step: Callable[[], object], seconds: float) -> tuple[float, ...]:
    """Seconds lost to a save in turn, to one in the background, and to the call of the latter; of `seconds` of steps."""
    ways = {"none": None, "turn": Checkpoints(folder / "turn", {}), "async": Checkpoints(folder / "async", {}, True)}
    times: dict[str, list[float]] = {way: [] for way in [*ways, "call"]}
    started = time.perf_counter()
    for _ in range(5):
        step()
    steps = int(5 * seconds / (time.perf_counter() - started))
    for n in range(rounds + 1):
        for way, checkpoints in ways.items():
            started = time.perf_counter()
            if checkpoints:
                times["call"].append(commit(checkpoints, held, n))
            for _ in range(steps):
                step()
            times[way].append(time.perf_counter() - started)
            if checkpoints:
                checkpoints.wait()
    shutil.rmtree(folder)
    extra = [[a - b for a, b in zip(times[way], times["none"], strict=True)] for way in ("turn", "async")]
    return tuple(statistics.median(row[1:]) for row in (*extra, times["call"][1::2]))  # the first is read back


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mb", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk that is measured")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        rows = options.mb * 10**6 // (3 * 4 * 1000)
        net = torch.nn.Linear(1000, rows, bias=False)
        optimizer = torch.optim.AdamW(net.parameters())
        net(torch.ones(1, 1000)).sum().backward()
        optimizer.step()
        checkpoints, held = Checkpoints(folder / "checkpoints", {}), Copies(net, optimizer)
        data = bytes(options.mb * 10**6)
        first = commit(checkpoints, held, 0)  # the first of a process is read back
        times = [(commit(checkpoints, held, n), bare(folder, data)) for n in range(1, options.rounds + 1)]
        del data
        batch = torch.ones(64, 1000)

        def step() -> None:
            net(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        on_cpu = lost(folder / "cpu", options.rounds, held, step, 4 * first)
        waiting = lost(folder / "waiting", options.rounds, held, lambda: time.sleep(0.01), 4 * first)
    finally:
        shutil.rmtree(folder)
    ours, peer = (statistics.median(side) for side in zip(*times, strict=True))
    print(f"commit of {options.mb} MB {ours:.2f} s (the first {first:.2f} s); write, hash and sync alone {peer:.2f} s")
    for name, (turn, behind, call) in {"on these cores": on_cpu, "that wait": waiting}.items():
        print(f"a save makes steps {name} {turn:.2f} s longer, in the background {behind:.2f} s, {call:.2f} s its call")
    figures = {
        "P18": ours,
        "P18_stall": ours / 60,
        "P18_bare": peer,
        **dict(zip(("P18_cpu", "P18_cpu_async", "P18_cpu_call"), on_cpu, strict=True)),
        **dict(zip(("P18_wait", "P18_wait_async", "P18_wait_call"), waiting, strict=True)),
        "cores": os.cpu_count(),
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items() if value is not None}))


if __name__ == "__main__":
    main()
