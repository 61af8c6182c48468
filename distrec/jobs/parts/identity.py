"""Which run a folder holds: the settings that shape it, compared before anything is done in its name."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distrec import config as cfg
from distrec import knobs
from distrec.data import prepared, store
from distrec.data.preparation import growth
from distrec.data.prepared import Prepared
from distrec.engine.evaluation import scoring
from distrec.engine.trainer import SCHEDULE

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

# of a run that started from the weights of another
CHECKPOINT = "from.checkpoint"  # their content
ANCESTOR = "from.run"  # what identifies that run
DATA = "from.data"  # all data that they were trained on, oldest first


def settings(config: cfg.Config) -> dict[str, Any]:
    """The settings that a checkpoint must agree with to be of this run, by name."""
    chosen = {
        "model": cfg.plain(config.model),
        "train": cfg.plain(config.train) | {"schedule": SCHEDULE},
        "score.mask_history": config.score.mask_history is not False,
        "score.protocol": scoring.PROTOCOL,
        "seed": config.seed,
    }
    if isinstance(config.model, knobs.Frellm):
        chosen["embed"] = cfg.plain(config.embed)
    return {key: value for key, value in store.flat(chosen).items() if key not in _FREE}


def made_by(out: Path) -> Mapping[str, Any]:
    """What made the run in a folder, by its stamp or that of its first good checkpoint; nothing where none does."""
    for folder in (out, *sorted((out / "checkpoints").glob("step-*"))):
        with contextlib.suppress(ValueError):  # none, or a broken one: whoever reads it next says so
            return store.read_stamp(folder)["made_by"]
    return {}


def check_settings(out: Path, made: Mapping[str, Any]) -> None:
    """Raise ValueError naming the first setting in which another run stands in this folder; nothing where none does."""
    before = made_by(out)
    for key, value in made.items() if before else ():
        if before.get(key) != value:
            how = f"{key} was {before.get(key)!r}, now {value!r}"
            if key in (CHECKPOINT, ANCESTOR, DATA):
                started = "from the weights of another from=RUN" if before.get(key) else "without from="
                how = f"it started {started}"
            raise ValueError(f"{out} holds another run ({how}): choose another out=DIR")


def data_of(out: Path, config: cfg.Config, now: Prepared) -> Prepared:
    """The prepared data of the run in a folder: `now`, or the same of another version of distrec.

    Raises: ValueError, in terms of files, interactions, users and items, when the run is of other data.
    """
    wanted = made_by(out).get("data", now.stamp)
    if wanted == now.stamp:
        return now
    then = growth.find(config.data.root, wanted)
    if then is None:
        raise ValueError(
            f"{out} was trained on other data than these, which are not in data.root={config.data.root} any more: give "
            "the data of then (data.path, data.root), or train anew into another out=DIR"
        )
    if growth.is_same(then, now.folder):
        return prepared.load(then)
    raise ValueError(
        f"{growth.changes(then, now, out)}; `distrec recommend out={out} histories=data unknown=drop` recommends for "
        f"the data as they are now by this model; `distrec train {out}/config.yaml from={out} out=DIR` goes on from it with them; or train "
        "anew into another out=DIR"
    )
