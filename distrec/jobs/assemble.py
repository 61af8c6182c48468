"""The model of a config; what it needs and lacks is made first."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from distrec import config as cfg
from distrec.data import item_codes, prepared, store
from distrec.data.prepared import Prepared
from distrec.engine.checkpoint import Checkpoints
from distrec.jobs.codes.artefact import Work
from distrec.jobs.codes.fit import quantize
from distrec.models.build import build
from distrec.runtime import Ranks

GENERATIVE = cfg.Tiger | cfg.Tone


class Loaded(NamedTuple):
    model: Any  # a Recommender
    data: Prepared


def codes_of(work: Work) -> Path | None:
    """The folder of the codes that the config's model generates; None when making them was stopped.

    Raises: ValueError when the folder that it names is broken or about other items; Collapsed when the gate is shut.
    """
    model = work.config.model
    assert isinstance(model, GENERATIVE)
    if model.codes is None:
        return quantize(work)
    if not (model.codes / "codes.safetensors").is_file():
        raise ValueError(f"model.codes={model.codes} is no folder of codes (made by distrec quantize)")
    return model.codes


def best_of(out: Path, config: cfg.Config, ranks: Ranks, device: torch.device) -> Loaded:
    """The model of a run with the weights of its best checkpoint; nothing is fitted.

    Raises: ValueError when the run has no good checkpoint, was about other data, or its codes are not there.
    """
    learns = not isinstance(config.model, cfg.Popularity | cfg.ItemKnn | cfg.Markov)
    best = Checkpoints(out / "checkpoints", {}).best() if learns else ""
    wanted = store.read_stamp(out / "checkpoints" / best)["made_by"].get("codes") if learns else None
    data = prepared.load(ranks.main_first(partial(prepared.prepare, config.data)))
    codes = item_codes.load(_codes_folder(config, wanted), data) if wanted else None
    model = build(config.model, data, config.seed, codes).to(device)
    if learns:
        made_by = {"data": data.stamp} | ({"codes": wanted} if wanted else {})
        Checkpoints(out / "checkpoints", made_by).load(best, model)
    return Loaded(model.eval(), data)


def _codes_folder(config: cfg.Config, wanted: str) -> Path:
    """The folder of codes with this content: the one that the config names, or one under data.root."""
    named, broken = getattr(config.model, "codes", None), ""
    for folder in [named] if named else sorted(config.data.root.glob("codes-*")):
        try:
            if (folder / store.STAMP).is_file() and store.content(folder) == wanted:
                return folder
        except ValueError as error:  # an artefact of another run may be broken
            broken = f" ({error})"
    raise ValueError(
        f"{named or config.data.root} does not hold the codes of this run: give model.codes=FOLDER{broken}"
    )


def assemble(work: Work) -> tuple[nn.Module, str | None] | None:
    """(the model, the hash of its codes if it has any), on the device; None when making its codes was stopped."""
    config, codes, identity = work.config, None, None
    if isinstance(config.model, GENERATIVE):
        folder = codes_of(work)
        if folder is None:
            return None
        codes, identity = item_codes.load(folder, work.data), store.content(folder)
    return build(config.model, work.data, config.seed, codes).to(work.device), identity
