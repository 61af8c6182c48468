"""P7: exact ranks of 1,000 users over 1M items × 64 dimensions, against the bare matrix product and faiss.

    python tests/bench/ranks.py [ROUNDS]

All sides run in turn in one process, on the same threads; medians.  The bare product is computed in
the pieces in which it is fastest here, into one buffer that is used again: the strongest form of the peer.
faiss (if installed) finds the top 20 by IndexFlatIP; it gives no exact ranks.
"""

import json
import os
import resource
import statistics
import sys
import time

import torch

from distrec.engine.evaluation import scoring
from distrec.engine.evaluation.exact import exact_ranks
from distrec.models.ranking import by_table
from distrec.runtime import Ranks

USERS, ITEMS, DIMS = 1_000, 1_000_000, 64


def main(rounds: int) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(USERS, DIMS, generator=generator)
    table = torch.randn(ITEMS, DIMS, generator=generator)
    targets = torch.randint(ITEMS, (USERS,), generator=generator)
    blocks = states.split(scoring.BLOCK)
    scorers = [by_table(block, table) for block in blocks]
    wanted = list(targets[:, None].split(scoring.BLOCK))
    buffers = {width: torch.empty(USERS, width) for width in (1024, 2048, 4096, 8192, 16_384, 65_536)}

    def bare(width: int) -> None:
        for low in range(0, ITEMS, width):
            piece = table[low : low + width]
            torch.mm(states, piece.T, out=buffers[width][:, : len(piece)])

    def full() -> torch.Tensor:
        return states @ table.T

    ranks: list[torch.Tensor] = []

    def ours() -> None:
        found = exact_ranks(scorers, wanted, [None] * len(blocks), ITEMS, slice(0, ITEMS), Ranks())
        ranks[:] = [rank for rank, _ in found]

    width = min(buffers, key=lambda w: seconds(lambda: bare(w)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours()
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    sides = {"bare": lambda: bare(width), "ours": ours}
    if search := faiss_search(table, states):
        sides["faiss"] = search
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            times[name].append(seconds(side))
    whole = seconds(full)
    check(states, table, targets, torch.cat(ranks))
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, value in median.items():
        print(f"{name:<6} {value:7.3f} s   ({min(times[name]):.3f} – {max(times[name]):.3f})")
    print(
        f"one product of {USERS:,} × {ITEMS:,} at once: {whole:.3f} s; best piece: {width:,} items; our extra memory {extra:.3f} GiB"
    )
    figures = {
        "P7": round(median["ours"] / median["bare"], 3),
        "P7_whole": round(median["ours"] / whole, 3),
        "P7_gib": round(extra, 3),
    }
    if "faiss" in median:
        figures["P7_faiss"] = round(median["faiss"] / median["ours"], 2)
    print(json.dumps({**figures, "cores": os.cpu_count(), "threads": torch.get_num_threads()}))


def seconds(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def faiss_search(table: torch.Tensor, states: torch.Tensor):
    try:
        import faiss
    except ImportError:
        print("faiss is not installed (pip install distrec[bench]); its side is left out")
        return None
    index = faiss.IndexFlatIP(DIMS)
    index.add(table.numpy())
    return lambda: index.search(states.numpy(), 20)


def check(states: torch.Tensor, table: torch.Tensor, targets: torch.Tensor, ranks: torch.Tensor) -> None:
    """Ten users by brute force in float64: near ties may move a rank by a few places in a million."""
    for u in range(10):
        scores = table.double() @ states[u].double()
        exact = 1 + int((scores > scores[targets[u]]).sum())
        assert abs(exact - float(ranks[u])) <= 2, (exact, ranks[u])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
