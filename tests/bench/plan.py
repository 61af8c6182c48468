"""python tests/bench/plan.py

The memory that `distrec plan` foretells against what a process really takes, for three classes of language models: the
growth of its resident memory over two steps, in a fresh process whose allocator gives back what is freed.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from decoders import CLASSES, saved, two_steps

from distrec import config as cfg
from distrec import knobs
from distrec.data.batches import Batch
from distrec.engine.costs.rehearsal import Rehearsal
from distrec.jobs.parts.sizing import weights
from distrec.models.backbone import Backbone
from distrec.models.build import sketch
from distrec.models.frellm import Frellm
from distrec.models.language.pretrained import open_decoder

ITEMS, ROWS, WIDTH = 3000, 64, 50
CASES = {
    "frozen": {},
    "lora": {"tune": "lora"},
    "checkpointing": {"checkpointing": True},
    "bfloat16": {"dtype": "bfloat16"},
    "nf4, bfloat16": {"dtype": "bfloat16", "quantise": "nf4"},
}


def config_of(case):
    return knobs.Frellm(tfm=knobs.Filter(mode="causal"), backbone=knobs.Backbone(**CASES[case]))


def foretold(folder, case):
    config = config_of(case)
    rehearsal = Rehearsal(sketch(config, ITEMS, widths=(50, 384), folder=folder), ITEMS)
    own = sum(p.nbytes for p in rehearsal.model.parameters() if not p.requires_grad)
    held = weights(cfg.Config(model=config), rehearsal.model)
    taken, _ = rehearsal.train(ROWS, WIDTH, False, 1, False)
    return taken.peak + taken.scratch - own + held.frozen + held.widest


def resident(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def taken(folder, case):
    """In a process of its own."""
    x = torch.randn(300, 300, requires_grad=True)  # what libraries load at first use is theirs
    (x @ x).sum().backward()
    torch.optim.AdamW([x]).step()
    config = config_of(case)
    open_decoder(Path(folder), config.backbone.dtype, config.backbone.quantise)
    before = resident("VmRSS")
    decoder = open_decoder(Path(folder), config.backbone.dtype, config.backbone.quantise)
    model = Frellm(
        config, Backbone(config.backbone, config.tfm, decoder), torch.randn(ITEMS, 50), torch.randn(ITEMS, 384)
    )
    items = torch.randint(ITEMS, (ROWS, WIDTH + 1))
    every = torch.ones(ROWS, WIDTH, dtype=torch.bool)
    batch = Batch(torch.arange(ROWS), items[:, :-1], every, items[:, 1:], every)
    two_steps(model, batch)
    print(resident("VmHWM") - before)


def main():
    print(f"{'':<10}{'':<16}{'plan, MiB':>10}{'taken, MiB':>12}{'ratio':>8}")
    for kind in CLASSES:
        with tempfile.TemporaryDirectory() as at:
            folder = saved(Path(at), kind, width=512, layers=6)
            for case in CASES:
                told = foretold(folder, case)
                env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
                done = subprocess.run(
                    [sys.executable, __file__, str(folder), case], env=env, capture_output=True, text=True, check=True
                )
                real = int(done.stdout.split()[-1])
                print(f"{kind:<10}{case:<16}{told / 2**20:>10.0f}{real / 2**20:>12.0f}{told / real:>8.3f}", flush=True)


if __name__ == "__main__":
    taken(*sys.argv[1:]) if len(sys.argv) > 1 else main()
