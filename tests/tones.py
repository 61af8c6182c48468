"""Tiny models over codes, and histories for them."""

import numpy as np
import torch

from distrec import knobs
from distrec.data.batches import Batch
from distrec.data.item_codes import ItemCodes
from distrec.models.tone import Tone

SIZES = (8, 8, 8, 3)
SMALL = {"d_model": 16, "d_ff": 32, "d_kv": 8, "n_heads": 2, "n_layers": 2, "beams": 20}
OFF = {"agf": False, "crfa": False, "rpml": False}


def catalogue(n=60, seed=0):
    drawn = torch.randperm(8**3, generator=torch.Generator().manual_seed(seed))[: n // 2].repeat(2)
    codes = torch.stack([drawn // 64, drawn // 8 % 8, drawn % 8, torch.arange(n) // (n // 2)], 1)
    return ItemCodes.of(codes, SIZES)


def tone(**settings):
    torch.manual_seed(0)
    model = Tone(knobs.Tone(**{**SMALL, **settings}), catalogue())
    with torch.no_grad():
        for parameter in model.parameters():  # norms and M away from where they start
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def histories(n=6, longest=20, seed=1, n_items=60):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, n)
    lengths[0] = longest
    items = torch.from_numpy(rng.integers(n_items, size=(n, longest)))
    is_item = torch.arange(longest) >= longest - torch.from_numpy(lengths)[:, None]
    is_target = torch.zeros_like(is_item)
    is_target[:, -1] = True
    return Batch(torch.arange(n), items, is_item, torch.from_numpy(rng.integers(n_items, size=(n, longest))), is_target)
