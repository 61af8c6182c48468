"""Ranks of 2,048 users over 1M items × 256 dimensions (a table of 1 GB): time and memory of a process.

    python tests/bench/shard.py [ROUNDS]

One process, two that hold all items each, and two that share them, in turn; medians, and the most that a process
held beyond what it had before.  Every launch works its part of the table out, as a model does that reads items, and
one thread a process serves all of them.  The ranks of the three must be the same bits.
"""

import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.distributed as dist

from distrec.engine.evaluation import exact
from distrec.engine.evaluation.shelf import Shelf
from distrec.models.ranking import PIECE, TableModel
from distrec.runtime import Ranks

USERS, ITEMS, DIMS, BLOCK = 2_048, 1_000_000, 256, 512
SIDES = {"one": (1, False), "two": (2, False), "two, items shared": (2, True)}


class Made(TableModel):
    """States and vectors that are functions of their numbers."""

    n_items = ITEMS

    def user_states(self, batch: int) -> torch.Tensor:
        return torch.randn(BLOCK, DIMS, generator=torch.Generator().manual_seed(batch))

    def item_vectors(self, items: slice) -> torch.Tensor:
        found = torch.empty(items.stop - items.start, DIMS)
        for low in range(items.start, items.stop, PIECE):
            piece = found[low - items.start :][:PIECE]
            piece.normal_(generator=torch.Generator().manual_seed(ITEMS + low))
        return found


def share(is_shared: bool) -> None:
    """One process of a launch: prints its seconds, GiB and the sum of the ranks' bytes."""
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    ranks = Ranks.here()
    targets = torch.randint(ITEMS, (USERS, 1), generator=torch.Generator().manual_seed(0)).split(BLOCK)
    group = range(len(targets))
    mine = ranks.deal(group)
    counted = group if is_shared else mine
    ranks.wait()
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    shelf = Shelf(Made(), ITEMS, exact.CHUNK["cpu"], ranks if is_shared else Ranks())
    made = time.perf_counter()
    scorers = shelf.scorers(mine, len(counted))
    wanted = [targets[n].numpy() for n in counted]
    cpu = torch.device("cpu")
    found = exact.exact_standing(scorers, wanted, [None] * len(counted), ITEMS, shelf.items, shelf.ranks, cpu)
    seconds = time.perf_counter() - made, made - started
    gib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    own = {n: rank.numpy() for n, (rank, _) in zip(counted, found, strict=True)}
    whole = {n: rank for part in ranks.gather(own) for n, rank in part.items()}
    digest = hashlib.sha256(b"".join(whole[n].tobytes() for n in group)).hexdigest()
    answers = ranks.gather((*seconds, gib, digest))
    if ranks.is_main:
        print(json.dumps(answers), flush=True)
    ranks.wait()


def launched(size: int, is_shared: bool) -> tuple[float, float, float, str]:
    """(seconds of ranking, seconds of the table, GiB), the most of any process, and the ranks' digest."""
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={size}"] if size > 1 else []
    command = [sys.executable, *start, __file__, "share", str(int(is_shared))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answers = json.loads(done.stdout.splitlines()[-1])
    digests = {digest for *_, digest in answers}
    assert len(digests) == 1, digests
    return (*(max(answer[i] for answer in answers) for i in range(3)), digests.pop())


def main(rounds: int) -> None:
    found: dict[str, list] = {name: [] for name in SIDES}
    for _ in range(rounds):
        for name, side in SIDES.items():
            found[name].append(launched(*side))
    digests = {digest for answers in found.values() for *_, digest in answers}
    assert len(digests) == 1, digests
    figures = {}
    for name, answers in found.items():
        rank, table, gib = (statistics.median(values) for values in list(zip(*answers, strict=True))[:3])
        print(f"{name:<18} ranks {rank:6.2f} s   table {table:5.2f} s   {gib:5.2f} GiB a process")
        figures[name] = [round(rank, 2), round(table, 2), round(gib, 2)]
    print(json.dumps({**figures, "cores": os.cpu_count()}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["share"]:
        share(sys.argv[2] == "1")
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
