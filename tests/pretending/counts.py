"""Host waits of a training step, a beam level, a fit's iteration and a ranking block, through the public functions alone.

A loop asks whether to stop once a round, or yields a state: what the pretended GPU has counted between two such moments
is what a round costs.
"""

from collections import Counter
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import decoders
import loops
import numpy as np
import tones
import torch
from clouds import cloud
from pretended import GPU, Gpu
from pretended_rules import OnGpu
from transformers import AutoModel

from distrec import config as cfg
from distrec import knobs
from distrec.codes.rows import Rows
from distrec.data.item_codes import ItemCodes
from distrec.engine.costs import meter
from distrec.engine.evaluation import scoring
from distrec.models import quantisers
from distrec.models.build import build
from distrec.models.tone import Tone
from distrec.runtime import Ranks

for library in ("peft", "bitsandbytes"):  # they look for a GPU when they are imported: before one is pretended
    import_module(library)
SMALL = {**tones.SMALL, "n_layers": 1, "beams": 8}
SASREC = {"d_model": 16, "max_len": 20}


def codes(n_items, sizes=(8, 8, 8, 3)):
    """Codes of which every two items share all but the last."""
    *levels, last = sizes
    drawn = torch.randperm(int(np.prod(levels)), generator=torch.Generator().manual_seed(0))[: -(-n_items // 2)]
    columns = [drawn // int(np.prod(levels[i + 1 :])) % size for i, size in enumerate(levels)]
    pairs = torch.stack(columns, 1).repeat(2, 1)[:n_items]
    return ItemCodes.of(torch.cat([pairs, (torch.arange(n_items) // len(drawn))[:, None]], 1), (*levels, last))


def zoo(folder):
    """name → (what builds it for a catalogue, settings of its training)."""

    def coded(config, **settings):
        return lambda data: Tone(config(**{**SMALL, **settings}), codes(data.n_items))

    def frellm(**settings):
        place = folder / "decoder"
        return lambda data: decoders.frellm(
            place if place.exists() else decoders.saved(place, layers=2), n_items=data.n_items, max_len=20, **settings
        )

    def sasrec(**settings):
        return lambda data: build(knobs.SasRec(**{**SASREC, **settings}), data, 0)

    return {
        "sasrec ce": (sasrec(), {}),
        "sasrec bce": (sasrec(loss="bce"), {}),
        "sasrec bf16": (sasrec(), {"precision": "bf16"}),
        "tiger": (coded(knobs.Tiger, user_tokens=20), {}),
        "tone": (coded(knobs.Tone), {}),
        "tone free, items, decoder": (
            coded(knobs.Tone, decoding="free", agf_axis="items", rpml_decoder=True, bin_embedding=True), {}
        ),
        "tone channels bf16": (coded(knobs.Tone, crfa_tokens="channels"), {"precision": "bf16"}),
        "frellm causal": (frellm(), {}),
        "frellm learnt": (frellm(tfm={"learn_cutoff": True}, head="linear"), {}),
        "frellm global": (frellm(mode="global"), {}),
        "frellm LoRA": (frellm(tune="lora"), {}),
        "frellm full": (frellm(mode="none", tune="full"), {}),
        "frellm sampled": (frellm(loss="sampled", negatives=32), {}),
        "frellm bf16": (frellm(device="cuda"), {"precision": "bf16"}),
    }  # fmt: skip


@contextmanager
def device(monkeypatch):
    """A pretended GPU for the house: its speed is not measured, and weights are loaded by the host and moved."""
    monkeypatch.setattr(meter, "matmul_speed", lambda *_: 1e12)
    load = AutoModel.from_pretrained

    def loaded(*args, device_map=None, **more):
        if device_map is None:
            return load(*args, **more)
        model, facts = load(*args, **more)
        return model.to(device_map[""]), facts

    monkeypatch.setattr(AutoModel, "from_pretrained", loaded)
    with Gpu() as gpu:
        yield gpu


def steps(gpu, data, folder, model, n=5, **train):
    """(host waits of each of n training steps, the trainer), without the first two, where optimizers and tables are set up."""
    trainer = loops.trainer(
        data, folder, model=model.to(GPU), **{"batch_tokens": 150, "log_steps": 10**6, "save_steps": 10**6, **train}
    )
    seen: list[tuple[int, Counter]] = []

    def stop():
        seen.append((trainer.progress.step, Counter(gpu.waits)))
        return trainer.progress.step >= n

    trainer.fit(stop)
    rounds = [b - a for (step, a), (after, b) in pairwise(seen) if after == step + 1 and step >= 2]
    assert rounds
    assert trainer.progress.epoch == 0  # no evaluation among them
    return rounds, trainer


def ranking(gpu, data, model, monkeypatch):
    """Host waits of each further block of a split's users; as few users a block as a search takes at once."""
    totals = []
    for blocks in (2, 5):
        monkeypatch.setattr(scoring, "BLOCK", -(-len(data.targets("valid")[0]) // blocks))
        for _ in range(2):  # the first fills caches
            before = Counter(gpu.waits)
            ranks = scoring.rank_split(model, data, "valid", knobs.Score(bootstrap=0), Ranks(), GPU)
        totals.append((gpu.waits - before).total())
    return (totals[1] - totals[0]) / 3, ranks


def search(gpu, decoding, n_levels, n_users=6):
    """Host waits of a search over codes of so many levels, by a model that has searched before."""
    config = knobs.Tiger(**{**SMALL, "decoding": decoding, "dropout": 0.0})
    model = Tone(config, codes(60, (8,) * (n_levels - 1) + (3,))).to(GPU).eval()
    batch = tones.histories(n_users).to(GPU)
    for _ in range(2):
        before = Counter(gpu.waits)
        model.search(batch, 8, decoding)
    return gpu.waits - before


def fit(words, device: torch.device | str = GPU, n=256, block=64) -> SimpleNamespace:
    """A quantizer on n rows in blocks; its waits after each iteration, if the device counts them."""
    config: Any = cfg.load(["codes.levels=1", *words]).codes
    table = cloud(n, d=8, dtype=torch.float32)
    rows = Rows.whole(table.to(device), dtype=torch.float32, block=block, device=device)
    quantizer = quantisers.build(config, 8, 0)
    counts = [Counter(OnGpu.gpu.waits) if OnGpu.gpu else None for _ in quantizer.run(rows)]
    return SimpleNamespace(fit=quantizer, counts=counts, rows=rows, config=config)


def iteration(counts):
    """Host waits of the cheapest round: others begin or end a level."""
    return min((after - before).total() for before, after in pairwise(counts))
