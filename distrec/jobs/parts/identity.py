"""Which run a folder holds: the settings that shape it, compared before anything is done in its name."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distrec import config as cfg
from distrec import knobs
from distrec.data import store
from distrec.engine.evaluation import scoring

_FREE = (
    "train.log_steps",
    "train.save_steps",
    "train.async_save",
    "train.deterministic",
    "train.timeout_min",
    "train.trackers",
    "model.codes",
    "model.items",
    "model.backbone.path",
    "model.backbone.revision",
    "model.backbone.init",
    "model.backbone.checkpointing",
    "model.logits_mib",
    "model.sasrec_train.async_save",
    "model.sasrec_train.deterministic",
    "embed.encoder",
    "embed.revision",
    "embed.batch",
)  # may differ between a run and its resumption, or are in the hashes of what it is built on


def settings(config: cfg.Config) -> dict[str, Any]:
    """The settings that a checkpoint must agree with to be of this run, by name."""
    chosen = {
        "model": cfg.plain(config.model),
        "train": cfg.plain(config.train),
        "score.mask_history": config.score.mask_history is not False,
        "score.protocol": scoring.PROTOCOL,
        "seed": config.seed,
    }
    if isinstance(config.model, knobs.Frellm):
        chosen["embed"] = cfg.plain(config.embed)
    return {key: value for key, value in store.flat(chosen).items() if key not in _FREE}


def check_settings(out: Path, made: Mapping[str, Any]) -> None:
    """Raise ValueError naming the first setting in which another run stands in this folder; nothing where none does."""
    for folder in (out, *sorted((out / "checkpoints").glob("step-*"))):
        with contextlib.suppress(ValueError):  # none, or a broken one: whoever reads it next says so
            before = store.read_stamp(folder)["made_by"]
            break
    else:
        return
    for key, value in made.items():
        if before.get(key) != value:
            raise ValueError(
                f"{out} holds another run ({key} was {before.get(key)!r}, now {value!r}): "
                "choose another out=DIR or remove it"
            )
