"""P21: how often the host waits for the device, and how many operators it starts, under the pretended GPU.

    python tests/bench/waits.py [--only sasrec,tone] [--where]        (half a minute; needs no GPU)

By model: a training step, a block of users that is ranked; a level of a beam search and a whole search; an iteration of each
quantizer over four blocks of rows, and each further block.  Small models: waits do not depend on width, operators grow with
the number of layers.  `--where` lists file and line.  The tests hold the same figures in tests/pretending/limits.py.
"""

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import prepare_small
from pretended import GPU
from pretending import counts
from pretending.test_fits import FITS

VIEWS = frozenset(
    ["view", "_unsafe_view", "reshape", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze", "t", "detach", "alias", "as_strided", "split", "unbind", "unfold", "diagonal", "split_with_sizes", "empty", "empty_like", "new_empty", "empty_strided", "lift_fresh", "_local_scalar_dense", "view_as_real", "real", "imag", "set_", "resize_"]
)  # fmt: skip


class Operators(TorchDispatchMode):
    """Counts operators that start a kernel."""

    def __init__(self):
        super().__init__()
        self.n = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._overloadpacket.__name__
        if name not in VIEWS:
            self.n[name] += 1
        return func(*args, **(kwargs or {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="parts of names, separated by commas")
    parser.add_argument("--where", action="store_true")
    options = parser.parse_args()
    only = [part for part in options.only.split(",") if part]
    figures: dict[str, object] = {"P21": {}, "P21_operators": {}, "P21_block": {}, "P21_iteration": {}}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        data = prepare_small(Path(folder) / "data")
        print(f"{'model':<28} {'a step':>7} {'operators':>10} {'a ranking block':>16}")
        for name, (make, train) in counts.zoo(Path(folder)).items():
            if only and not any(part in name for part in only):
                continue
            torch.manual_seed(0)
            with counts.device(patch) as gpu:
                rounds, trainer = counts.steps(gpu, data, Path(folder) / name, make(data), **train)
                figures["P21"][name] = max(waits.total() for waits in rounds)
                figures["P21_operators"][name] = operators_of_a_step(data, Path(folder) / f"{name} again", make, train)
                figures["P21_block"][name], _ = counts.ranking(gpu, data, trainer.model, patch)
            print(
                f"{name:<28} {figures['P21'][name]:>7} {figures['P21_operators'][name]:>10} {figures['P21_block'][name]:>16g}",
                flush=True,
            )
            if options.where:
                show(max(rounds, key=Counter.total))
        for decoding in ("constrained", "free"):
            with counts.device(patch) as gpu:
                few, many = (counts.search(gpu, decoding, n_levels) for n_levels in (4, 6))
            figures[f"P21_level_{decoding}"] = (many - few).total() / 2
            figures[f"P21_search_{decoding}"] = few.total()
            print(
                f"beam search, {decoding:<12} a level {(many - few).total() / 2:g}, a search {few.total()}", flush=True
            )
        for name, words in FITS.items():
            if "spectral" in name or (only and not any(part in name for part in only)):
                continue
            with counts.device(patch):
                coarse, fine = (counts.iteration(counts.fit(words, block=block).counts) for block in (64, 32))
            figures["P21_iteration"][name] = [coarse, (fine - coarse) / 4]
            print(
                f"{name:<28} an iteration over four blocks {coarse:>3}, a further block {(fine - coarse) / 4:g}",
                flush=True,
            )
    print(json.dumps(figures | {"cores": os.cpu_count()}))


def operators_of_a_step(data, folder: Path, make, train) -> int:
    """Operators between the third and the fourth time that the loop asks whether to stop."""
    trainer = counts.loops.trainer(
        data,
        folder,
        model=make(data).to(GPU),
        **{"batch_tokens": 150, "log_steps": 10**6, "save_steps": 10**6, **train},
    )
    seen: list[int] = []
    with Operators() as operators:

        def stop() -> bool:
            seen.append(operators.n.total())
            return len(seen) > 4

        trainer.fit(stop)
    return seen[3] - seen[2]


def show(waits: Counter) -> None:
    for (what, where), n in waits.most_common():
        print(f"    {n:3d} {what:16} {where}")


if __name__ == "__main__":
    main()
