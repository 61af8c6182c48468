"""P8: useful tokens a second on real lengths, batches cut by length against windows of 20 places.

    python tests/bench/packing.py [--rounds 3] [--lengths FOLDER_OF_A_CATALOGUE]

The same decoder (4 layers of 256), the same sequences of Beauty (the latest 20 items before each user's last, all positions trained
on), the same number of places a step; one side's batches are those of training, the other's are padded to 20.  A useful token
is an item that somebody had.  Medians over rounds of some hundred batches, in turn, in one process.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from beam import timed
from frozen import CAUSAL, SMALL, backbone

from distrec import config as cfg
from distrec.data import batches, prepared

WINDOW, PLACES = 20, 1280


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lengths", type=Path, default=Path("../shared/data/amazon_beauty_2014"))
    options = parser.parse_args()
    config = cfg.load([f"data.path={options.lengths}", "data.source=sequences", "data.root=artefacts"])
    data = prepared.load(prepared.prepare(config.data))
    samples = replace(batches.evaluation(data, "test", WINDOW), last_only=False)
    model = backbone(CAUSAL, shape={**SMALL, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4})
    ours = batches.steps(samples, PLACES, 0, 0)[:60]
    order = np.random.default_rng(0).permutation(len(samples))
    theirs = np.array_split(order, len(order) // (PLACES // WINDOW))[:60]
    sides = {
        "by length": work(model, data, samples, ours, None),
        "padded": work(model, data, samples, theirs, WINDOW),
    }
    useful = {"by length": tokens(samples, ours), "padded": tokens(samples, theirs)}
    times = timed(sides, options.rounds)
    for name, value in times.items():
        print(f"{name:<10} {useful[name]:>7,} useful tokens, {useful[name] / value:8.0f} a second")
    mean = samples.lengths().mean()
    print(f"mean length {mean:.2f}: the bound is {WINDOW / mean:.2f}")
    speed = {name: useful[name] / value for name, value in times.items()}
    print(
        json.dumps(
            {
                "P8": round(speed["by length"] / speed["padded"], 2),
                "P8_bound": round(WINDOW / mean, 2),
                "cores": os.cpu_count(),
            }
        )
    )


def tokens(samples: batches.Samples, plan: list) -> int:
    return sum(int(samples.lengths(rows).sum()) for rows in plan)


def work(model, data, samples, plan, pad: int | None):
    found = [batches.collate(data, samples, rows) for rows in plan]
    shapes = [torch.nn.functional.pad(b.is_item, ((pad or b.is_item.shape[1]) - b.is_item.shape[1], 0)) for b in found]

    def run() -> None:
        for is_item in shapes:
            x = torch.randn(*is_item.shape, model.width).requires_grad_()
            model(x, is_item.long(), is_window=True).square().mean().backward()

    return run


if __name__ == "__main__":
    main()
