"""P20: how the time of each stage grows with its work: log₁₀ of time at 10 n ÷ time at n; 1 is linear.

    python tests/bench/growth.py [--rounds 3]

The best of a few rounds each, at sizes that leave the processor's caches behind: in between, a step of the memory shows
as growth (.03 s for 100,000 samples' batches, .6 for a million, 6.5 for ten).
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import prepare
from graph import ALPHA, sequences

from distrec import knobs
from distrec.codes.collisions import running_digit
from distrec.codes.gmm import GaussianMixture
from distrec.codes.kmeans import KMeans
from distrec.codes.prefix import PrefixIndex
from distrec.codes.rows import Rows
from distrec.data import batches
from distrec.data import prepared as data
from distrec.data.item_codes import ItemCodes
from distrec.data.raw import synthetic
from distrec.freq import graph, polynomial

Work = Callable[[], object]


def preparing(n: int, scratch: Path) -> Work:
    path = scratch / f"log-{n}.parquet"
    prepare.write(n, str(path))
    count = iter(range(10**6))

    def work() -> None:
        root = scratch / f"art-{n}-{next(count)}"
        data.prepare(knobs.Data(source="table", path=path, root=root, k_core=5))

    return work


def planning(n: int, _: Path) -> Work:
    """The batches of an epoch."""
    ends = np.arange(1, n + 1) * 20
    lengths = np.random.default_rng(0).integers(2, 20, n)
    samples = batches.Samples(np.arange(n), ends - lengths, ends, False, 50)
    return lambda: batches.steps(samples, 4096, 0, 0)


def building(n: int, _: Path) -> Work:
    item, start = sequences(n // 10, n)
    return lambda: graph.normalise(graph.cooccurrence(item, start, n // 10), in_place=True)


def filtering(n: int, _: Path) -> Work:
    adjacency = building(n, _)()
    x = torch.randn(n // 10, 64)
    return lambda: polynomial.low_pass(adjacency, x, ALPHA)


def clustering(n: int, _: Path) -> Work:
    rows = Rows.whole(torch.randn(n, 64, generator=torch.Generator().manual_seed(0)))
    return lambda: KMeans(64, init="random", max_iter=5, tol=-1.0).fit(rows)


def mixing(n: int, _: Path) -> Work:
    rows = Rows.whole(torch.randn(n, 64, generator=torch.Generator().manual_seed(0)))
    return lambda: GaussianMixture(64, max_iter=5, tol=0.0, n_init=1).fit(rows)


def coding(n: int, _: Path) -> Work:
    codes = torch.randint(256, (n, 3), generator=torch.Generator().manual_seed(0))

    def work() -> None:
        digit = running_digit(codes, (256,) * 3, 4096)
        both = ItemCodes.of(torch.cat([codes, digit[:, None]], 1), (256, 256, 256, 4096))
        PrefixIndex.of(both.codes, both.sizes)

    return work


def generating(n: int, _: Path) -> Work:
    return lambda: synthetic.catalogue(knobs.Synthetic(users=n // 12, items=1000), np.random.default_rng(0))


STAGES: dict[str, tuple[Callable[[int, Path], Work], int]] = {
    "prepare, interactions": (preparing, 300_000),
    "synthetic catalogue, interactions": (generating, 3_000_000),
    "batches of an epoch, samples": (planning, 1_000_000),
    "graph, edges": (building, 10_000_000),
    "graph filter, edges": (filtering, 10_000_000),
    "k-means iteration, items": (clustering, 30_000),
    "EM iteration, items": (mixing, 30_000),
    "running code, maps and index, items": (coding, 1_000_000),
}


def best(work: Work, rounds: int) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    found = {}
    for name, (stage, n) in STAGES.items():
        with tempfile.TemporaryDirectory() as scratch:
            few, many = (best(stage(size, Path(scratch)), rounds) for size in (n, 10 * n))
        found[name] = math.log10(many / few)
        print(
            f"{name:<40} {few:8.3f} s at {n:>9,}   {many:8.3f} s at {10 * n:>10,}   exponent {found[name]:.3f}",
            flush=True,
        )
    print(
        json.dumps({"P20": round(max(found.values()), 3), "cores": os.cpu_count(), "threads": torch.get_num_threads()})
    )


if __name__ == "__main__":
    main()
