"""The model of a config; what it needs and lacks is made first."""

from collections.abc import Callable
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
from distrec.models.build import build, is_trained
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


def best_of(
    out: Path, config: cfg.Config, ranks: Ranks, stop: Callable[[], bool], device: torch.device
) -> Loaded | None:
    """The model of a run with the weights of its best checkpoint; None when making its codes was stopped.

    Raises: ValueError when the run was about other data or codes, or has no good checkpoint.
    """
    data = prepared.load(ranks.main_first(partial(prepared.prepare, config.data)))
    assembled = assemble(Work(config, data, ranks, stop, device))
    if assembled is None:
        return None
    model, codes = assembled
    if is_trained(model):
        kept = Checkpoints(out / "checkpoints", {"data": data.stamp} | ({"codes": codes} if codes else {}))
        kept.load(kept.best(), model)
    return Loaded(model.eval(), data)


def assemble(work: Work) -> tuple[nn.Module, str | None] | None:
    """(the model, the hash of its codes if it has any), on the device; None when making its codes was stopped."""
    config, codes, identity = work.config, None, None
    if isinstance(config.model, GENERATIVE):
        folder = codes_of(work)
        if folder is None:
            return None
        codes, identity = item_codes.load(folder, work.data), store.content(folder)
    return build(config.model, work.data, config.seed, codes).to(work.device), identity
