"""Catalogues, histories and prepared data of the visit."""

import numpy as np
import torch
from device.visit import visit


def catalogue(n_items=400):
    from distrec.data.item_codes import ItemCodes

    drawn = torch.randperm(32**3, generator=torch.Generator().manual_seed(0))[: n_items // 2].repeat(2)
    codes = torch.stack([drawn // 1024, drawn // 32 % 32, drawn % 32, torch.arange(n_items) // (n_items // 2)], 1)
    return ItemCodes.of(codes, (32, 32, 32, 3))


def histories(n, longest, n_items, seed=1):
    from distrec.data.batches import Batch

    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, n)
    lengths[0] = longest
    items = torch.from_numpy(rng.integers(n_items, size=(n, longest)))
    is_item = torch.arange(longest) >= longest - torch.from_numpy(lengths)[:, None]
    return Batch(
        torch.arange(n), items, is_item, torch.from_numpy(rng.integers(n_items, size=(n, longest))), is_item.clone()
    )


def prepared_small():
    from conftest import prepare_small

    return prepare_small(visit.work / "artefacts")


def beauty():
    from distrec import config as cfg
    from distrec.data import prepared

    place = visit.data / "amazon_beauty_2014"
    config = cfg.load([f"data.root={visit.work / 'beauty'}", "data.source=sequences", f"data.path={place}"])
    return prepared.load(prepared.prepare(config.data))
