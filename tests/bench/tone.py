"""P14, P15: what TONE's parts cost beside TIGER, in training and in inference.

    python tests/bench/tone.py [--rounds 5] [--cuda] [--users 64] [--items 12101]

The paper's shape (4+4 layers, d 128, 6 heads of 64, 20 items of 4 codes, beam 30); a step is forward, backward and Adam on 64 full
windows of 80 tokens, as both are trained in the paper.  TIGER needs no fixed window: the second table gives it histories as long as
Beauty's prefixes are (5 items in the median), which TONE still pads to 20.  Medians, in turn, in one process, on a GPU with --cuda.
"""

import argparse
import json
import os
import sys

import numpy as np
import torch
from beam import SIZES, catalogue, name_of, timed

from distrec import knobs
from distrec.data.batches import Batch
from distrec.data.item_codes import ItemCodes
from distrec.models.tone import Tone


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--items", type=int, default=12_101)
    options = parser.parse_args(argv)
    device = torch.device("cuda", 0) if options.cuda else torch.device("cpu")
    print(f"on {name_of(device)}", flush=True)
    codes = ItemCodes.of(catalogue(options.items), SIZES)
    models = {"tiger": Tone(knobs.Tiger(), codes).to(device), "tone": Tone(knobs.Tone(), codes).to(device)}
    figures: dict[str, float] = {}
    for name, length, key in (("full windows", 20, ""), ("histories of 5", 5, "_5")):
        batch = histories(options.users, length, options.items).to(device)
        steps = timed({which: training(model, batch) for which, model in models.items()}, options.rounds, device)
        searches = timed({which: inference(model, batch) for which, model in models.items()}, options.rounds, device)
        print(
            f"{name:<15} training step: TIGER {1e3 * steps['tiger']:6.0f} ms, TONE {1e3 * steps['tone']:6.0f} ms"
            f"   search: TIGER {1e3 * searches['tiger']:6.0f} ms, TONE {1e3 * searches['tone']:6.0f} ms",
            flush=True,
        )
        figures[f"P14{key}"] = round(steps["tone"] / steps["tiger"], 3)
        figures[f"P15{key}"] = round(searches["tone"] / searches["tiger"], 3)
    weights = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    print(", ".join(f"{name}: {n / 1e6:.2f} million weights" for name, n in weights.items()))
    facts = {"device": name_of(device), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    print(json.dumps({**figures, **facts}))


def histories(n: int, length: int, n_items: int) -> Batch:
    items = torch.from_numpy(np.random.default_rng(0).integers(n_items, size=(n, length)))
    there = torch.ones(n, length, dtype=torch.bool)
    return Batch(torch.arange(n), items, there, items, there)


def training(model: Tone, batch: Batch):
    optimiser = torch.optim.AdamW(model.parameters(), 1e-4)

    def step() -> None:
        model.train()
        optimiser.zero_grad()
        model(batch).backward()
        optimiser.step()

    step()
    return step


def inference(model: Tone, batch: Batch):
    def run() -> None:
        model.eval()
        with torch.inference_mode():
            model.search(batch, 20, "constrained")

    run()
    return run


if __name__ == "__main__":
    main(sys.argv[1:])
