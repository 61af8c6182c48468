"""P17: a graph of 1 million items and about 100 million edges, built, normalised and used as a filter.

    python tests/bench/graph.py [--items 1000000] [--edges 100000000] [--rounds 5]

P17: `low_pass` (order 1, D 64, the whole of (1 − α) x + α A x) over scipy's bare A @ x; medians, in turn, in one process.
P17_mem: the most that is resident from before the graph is built until x is filtered, above what was resident before
(sequences and x), over the edges' own bytes (int32 and float32 each): R and its transpose, all working space, the edges
and the filter's result.  `without_result` leaves the result's bytes out, `with_all` adds those of the sequences and x.
Users are synthetic: each has 20 items, drawn by popularity (a Zipf tail) in an order of ids that tells nothing.
"""

import argparse
import ctypes
import gc
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from beam import timed

from distrec.freq import graph, polynomial

LENGTH, DIMS, ALPHA = 20, 64, 0.7
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--edges", type=int, default=100_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    figures = measure(options.items, options.edges, options.rounds)
    print(json.dumps({**figures, "cores": os.cpu_count(), "threads": torch.get_num_threads()}))


def measure(n_items: int, n_edges: int, rounds: int) -> dict[str, float]:
    item, start = sequences(n_items, n_edges)
    x = torch.randn(n_items, DIMS, generator=torch.Generator().manual_seed(0))
    warm_up()
    gc.collect()
    given = item.nbytes + start.nbytes + x.nbytes
    before, began, took = settled(), time.perf_counter(), {}
    W = graph.cooccurrence(item, start, n_items)
    took["build"], peaks = time.perf_counter() - began, {"build": resident("VmHWM") - before}
    own = W.data.nbytes + W.indices.nbytes
    began = time.perf_counter()
    A = graph.normalise(W, in_place=True)
    took["normalise"], peaks["normalise"] = time.perf_counter() - began, resident("VmHWM") - before
    began = time.perf_counter()
    y = polynomial.low_pass(A, x, ALPHA)
    took["filter"], peaks["filter"] = time.perf_counter() - began, resident("VmHWM") - before
    print(f"{n_items:,} items, {len(item):,} interactions, {A.nnz:,} edges of {own / MIB:,.0f} MiB")
    for name in took:
        print(
            f"{name:<10} {took[name]:7.2f} s   peak so far {peaks[name] / MIB:7,.0f} MiB, {peaks[name] / own:.2f} edges"
        )
    result = y.nbytes
    bare = A @ x.numpy()
    linked = np.diff(A.indptr) > 0
    np.testing.assert_allclose(y.numpy()[linked], ((1 - ALPHA) * x.numpy() + ALPHA * bare)[linked], atol=1e-4)
    del y, bare
    times = timed({"low_pass": lambda: polynomial.low_pass(A, x, ALPHA), "scipy": lambda: A @ x.numpy()}, rounds)
    for name, value in times.items():
        print(f"{name:<10} {value:7.2f} s   {A.nnz * DIMS * 2 / value / 1e9:.1f} GFlop/s")
    peak = peaks["filter"]
    return {
        "P17": round(times["low_pass"] / times["scipy"], 2),
        "P17_mem": round(peak / own, 2),
        "P17_mem_without_result": round(max(peaks["normalise"], peak - result) / own, 2),
        "P17_mem_with_all": round((peak + given) / own, 2),
        "P17_build_s": round(took["build"], 1),
        "items": n_items,
        "edges": A.nnz,
    }


def sequences(n_items: int, n_edges: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Users of `LENGTH` items each, as many as give about this many edges."""
    rng = np.random.default_rng(seed)
    share = 1 / (np.arange(n_items) + n_items / 50) ** 0.8
    share = (share / share.sum()).cumsum()
    users = round(1.05 * n_edges / LENGTH**2)
    name = rng.permutation(n_items).astype(np.int32)
    drawn = np.minimum(np.searchsorted(share, rng.random(users * LENGTH)), n_items - 1)
    return name[drawn], np.arange(users + 1) * LENGTH


def warm_up() -> None:
    """What libraries load and set aside at first use is none of the graph's memory."""
    A = graph.normalise(graph.cooccurrence(np.arange(1000), np.array([0, 1000]), 1000))
    polynomial.low_pass(A, torch.ones(1000, DIMS), ALPHA)


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def settled() -> int:
    """What is resident once freed memory has gone back to the system; the peak (VmHWM) falls to that."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


if __name__ == "__main__":
    if not Path("/proc/self/clear_refs").exists():
        sys.exit("this benchmark reads /proc: run it on Linux")
    main()
