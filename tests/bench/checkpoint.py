"""P18: seconds to commit a checkpoint of 200 MB (written, hashed, synced, renamed); P18_stall: the share of a minute.

    python tests/bench/checkpoint.py [--rounds 5] [--mb 200] [--folder .]

The peer in the same run: one file of the same bytes, written, hashed and synced.  Medians, in turn.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import tempfile
import time
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
    finally:
        shutil.rmtree(folder)
    ours, peer = (statistics.median(side) for side in zip(*times, strict=True))
    print(f"commit of {options.mb} MB {ours:.2f} s (the first {first:.2f} s); write, hash and sync alone {peer:.2f} s")
    figures = {"P18": ours, "P18_stall": ours / 60, "P18_bare": peer, "cores": os.cpu_count()}
    print(json.dumps({name: round(value, 4) for name, value in figures.items() if value is not None}))


if __name__ == "__main__":
    main()
