"""P7: exact ranks of 1,000 users over 1M items × 64 dimensions, against the bare matrix product and faiss.

    python tests/bench/ranks.py [ROUNDS] [--cuda] [--users 1000] [--items 1000000]

All sides run in turn in one process, on the same threads; medians.  The bare product is computed in
the pieces in which it is fastest here, into one buffer that is used again: the strongest form of the peer.
faiss (if installed) finds the top 20 by IndexFlatIP; it gives no exact ranks.  With --cuda all is on the GPU, without faiss;
`P7_twice` is the share of blocks that were counted a second time, because a target's score differs in its last bit from
the one in its chunk.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time

import torch
from beam import name_of, settle

from distrec.engine.evaluation import scoring
from distrec.engine.evaluation.exact import CHUNK, exact_standing
from distrec.models.ranking import by_table
from distrec.runtime import Ranks

DIMS = 64
PIECES = {"cpu": (1024, 2048, 4096, 8192, 16_384, 65_536), "cuda": (16_384, 65_536, 262_144)}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    options = parser.parse_args(argv)
    n_users, n_items, rounds = options.users, options.items, options.rounds
    device = torch.device("cuda", 0) if options.cuda else torch.device("cpu")
    print(f"{n_users:,} users, {n_items:,} items × {DIMS} on {name_of(device)}", flush=True)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(n_users, DIMS, generator=generator).to(device)
    table = torch.randn(n_items, DIMS, generator=generator).to(device)
    targets = torch.randint(n_items, (n_users,), generator=generator)
    blocks = states.split(scoring.BLOCK)
    n_chunks = 0

    def counting(scorer):
        def of(items):
            nonlocal n_chunks
            n_chunks += isinstance(items, slice)
            return scorer(items)

        return of

    scorers = [counting(by_table(block, table)) for block in blocks]
    wanted = [part.numpy() for part in targets[:, None].split(scoring.BLOCK)]
    widths = [width for width in PIECES[device.type] if width <= n_items] or [n_items]
    buffers = {width: torch.empty(n_users, width, device=device) for width in widths}

    def seconds(work) -> float:
        settle(device)
        started = time.perf_counter()
        work()
        settle(device)
        return time.perf_counter() - started

    def bare(width: int) -> None:
        for low in range(0, n_items, width):
            piece = table[low : low + width]
            torch.mm(states, piece.T, out=buffers[width][:, : len(piece)])

    def full() -> torch.Tensor:
        return states @ table.T

    ranks: list[torch.Tensor] = []

    def ours() -> None:
        found = exact_standing(scorers, wanted, [None] * len(blocks), n_items, slice(0, n_items), Ranks(), device)
        ranks[:] = [1 + better + ties / 2 for (better, ties), _ in found]

    for width in buffers:
        bare(width)  # the first time of a shape is another
    pieces = {width: seconds(lambda width=width: bare(width)) for width in buffers}
    width = min(pieces, key=pieces.__getitem__)
    print(f"the product in pieces of {width:,}: {pieces[width]:.3f} s", flush=True)
    before, n_chunks = memory(device), 0
    ours()
    extra = (memory(device) - before) / 2**30
    n_once = len(blocks) * -(-n_items // CHUNK[device.type])
    twice = n_chunks / n_once - 1
    sides = {"bare": lambda: bare(width), "ours": ours}
    if not options.cuda and (search := faiss_search(table, states)):
        sides["faiss"] = search
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            times[name].append(seconds(side))
            print(f"{name:<6} {times[name][-1]:7.3f} s", flush=True)
    whole = seconds(full)
    check(states.cpu(), table.cpu(), targets, torch.cat(ranks).cpu())
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, value in median.items():
        print(f"{name:<6} {value:7.3f} s   ({min(times[name]):.3f} – {max(times[name]):.3f})")
    print(
        f"one product of {n_users:,} × {n_items:,} at once: {whole:.3f} s; our extra memory {extra:.3f} GiB; {twice:.0%} of the blocks counted twice"
    )
    figures = {
        "P7": round(median["ours"] / median["bare"], 3),
        "P7_whole": round(median["ours"] / whole, 3),
        "P7_gib": round(extra, 3),
        "P7_twice": round(twice, 3),
    }
    if "faiss" in median:
        figures["P7_faiss"] = round(median["faiss"] / median["ours"], 2)
    facts = {"device": name_of(device), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    print(json.dumps({**figures, **facts}))


def memory(device: torch.device) -> int:
    """The most bytes that the process, or the GPU for it, has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10


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
    main(sys.argv[1:])
