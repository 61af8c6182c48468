"""P5, P6: constrained beam search against transformers' generate, and the prefix mask alone.

    python tests/bench/beam.py [--users 64] [--rounds 3] [--cuda] [--items 12101] [--largest 5000000]

Both sides have the same weights (T5, 4+4 layers, d 128), users, beams (30) and catalogue (12,101 items, 4 codes of 256),
and list the same items.  P6: what constrains the tokens of all beams at the four levels, without the model; the same at
5 million items (`--largest`).  Medians, in turn, in one process, on a GPU with --cuda.
"""

import argparse
import json
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers.generation.logits_process import PrefixConstrainedLogitsProcessor

sys.path.insert(0, str(Path(__file__).parents[1]))
from t5 import fed, hugging_face

from distrec import knobs
from distrec.codes.prefix import PrefixIndex
from distrec.data.batches import Batch
from distrec.data.item_codes import ItemCodes
from distrec.models.tone import Tone

SIZES, BEAMS = (256,) * 4, 30
CPU = torch.device("cpu")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--items", type=int, default=12_101)
    parser.add_argument("--largest", type=int, default=5_000_000)
    options = parser.parse_args(argv)
    device = torch.device("cuda", 0) if options.cuda else CPU
    print(f"on {name_of(device)}", flush=True)
    figures = search(options.users, options.rounds, options.items, device)
    sizes = [options.items, *(n for n in (100_000, 1_000_000, 5_000_000) if n <= options.largest)]
    figures |= mask(options.users, options.rounds, sizes, device)
    facts = {"device": name_of(device), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    print(json.dumps({**figures, **facts}))


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def settle(device: torch.device) -> None:
    """Wait for a GPU, so that a clock tells of what it did."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def catalogue(n: int, seed: int = 0) -> torch.Tensor:
    """Distinct codes of n items: three levels at random, the last a running number."""
    rng = np.random.default_rng(seed)
    keys = np.sort(rng.integers(256**3, size=n))
    starts = np.r_[True, keys[1:] != keys[:-1]]
    first = np.maximum.accumulate(np.where(starts, np.arange(n), 0))
    codes = np.stack([keys // 65_536, keys // 256 % 256, keys % 256, np.arange(n) - first], 1)
    return torch.from_numpy(codes[rng.permutation(n)])


def histories(n: int, n_items: int) -> Batch:
    rng = np.random.default_rng(1)
    items, there = torch.from_numpy(rng.integers(n_items, size=(n, 20))), torch.ones(n, 20, dtype=torch.bool)
    return Batch(torch.arange(n), items, there, items, there)


class Allowed:
    """What users of generate write: a dictionary from a prefix to the tokens that may follow."""

    def __init__(self, tokens: torch.Tensor):
        self.after: dict[tuple[int, ...], list[int]] = {}
        for row in tokens.tolist():
            for n in range(4):
                self.after.setdefault(tuple(row[:n]), []).append(row[n])
        self.after = {prefix: sorted(set(found)) for prefix, found in self.after.items()}

    def __call__(self, _: int, sent: torch.Tensor) -> list[int]:
        return self.after[tuple(sent.tolist()[1:])]


def search(users: int, rounds: int, n_items: int, device: torch.device) -> dict[str, float]:
    codes = catalogue(n_items)
    torch.manual_seed(0)
    off = {"agf": False, "crfa": False, "rpml": False}
    model = Tone(knobs.Tone(beams=BEAMS, **off), ItemCodes.of(codes, SIZES)).eval()
    theirs, _ = hugging_face(model)
    batch = histories(users, len(codes))
    ids, attention, _ = (part.to(device) for part in fed(model, batch))
    allowed = Allowed(model.token_of)
    model, theirs, batch = model.to(device), theirs.to(device), batch.to(device)
    settings = {"num_beams": BEAMS, "num_return_sequences": 20, "max_new_tokens": 4, "min_new_tokens": 4}
    settings |= {"length_penalty": 0.0, "do_sample": False, "eos_token_id": None}
    sides = {
        "ours": lambda: model.search(batch, 20, "constrained")[0],
        "generate": lambda: theirs.generate(
            input_ids=ids, attention_mask=attention, prefix_allowed_tokens_fn=allowed, **settings
        ),
    }
    with torch.inference_mode():
        listed = {name: work() for name, work in sides.items()}
        tokens = listed["generate"].view(users, 20, 5)[..., 1:]
        same = (model.token_of[listed["ours"]] == tokens).all(2).double().mean()
        times = timed(sides, rounds, device)
    for name, value in times.items():
        print(f"beam {BEAMS}, {users} users, {name:<9} {value:8.3f} s   {1e3 * value / users:6.1f} ms a user")
    print(f"places with the same item: {same:.2%}", flush=True)
    return {"P5": round(times["generate"] / times["ours"], 1), "P5_same": round(float(same), 4)}


def mask(users: int, rounds: int, sizes: list[int], device: torch.device) -> dict[str, float]:
    took = {}
    for n in sizes:
        codes = catalogue(n)
        index = PrefixIndex.of(codes, SIZES).to(device)
        rows = torch.from_numpy(np.random.default_rng(2).integers(n, size=(users, BEAMS)))
        nodes = paths(index, codes[rows].to(device))
        sides = {"ours": partial(ours, index, nodes)}
        sides["ours"]()
        if n == sizes[0]:
            tokens = codes + 1 + 256 * torch.arange(4)
            processor = PrefixConstrainedLogitsProcessor(Allowed(tokens), BEAMS)
            sent = torch.cat([torch.zeros(users * BEAMS, 1, dtype=torch.int64), tokens[rows].flatten(0, 1)], 1)
            sides["theirs"] = partial(
                theirs, processor, sent.to(device), torch.randn(users * BEAMS, 1025, device=device)
            )
        times = timed(sides, max(rounds, 5), device)
        took[n] = times["ours"]
        peer = f", the processor {1e3 * times['theirs']:.1f} ms" if "theirs" in times else ""
        print(
            f"mask, {n:>9,} items: {1e3 * times['ours']:6.2f} ms for {users * BEAMS:,} beams at 4 levels{peer}; index "
            f"{index.n_bytes / n:.1f} bytes an item",
            flush=True,
        )
        if "theirs" in times:
            ratio = times["theirs"] / times["ours"]
    return {
        "P6": round(ratio, 1),
        "P6_5M": round(took[sizes[-1]] / took[sizes[0]], 2),
        "P6_bytes": round(index.n_bytes / n, 1),
    }


def ours(index: PrefixIndex, nodes: list[torch.Tensor]) -> None:
    for level in range(4):
        index.children(level, nodes[level])


def theirs(processor: PrefixConstrainedLogitsProcessor, sent: torch.Tensor, scores: torch.Tensor) -> None:
    for level in range(4):
        processor(sent[:, : level + 1], scores)


def paths(index: PrefixIndex, codes: torch.Tensor) -> list[torch.Tensor]:
    """The node that stands above each level of some items' codes."""
    nodes = [torch.zeros_like(codes[..., 0])]
    for level in range(3):
        child, code, is_child = index.children(level, nodes[-1])
        nodes.append(
            child.gather(-1, ((code == codes[..., level, None]) & is_child).int().argmax(-1, keepdim=True))[..., 0]
        )
    return nodes


def timed(sides: dict, rounds: int, device: torch.device = CPU) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            settle(device)
            started = time.perf_counter()
            work()
            settle(device)
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
