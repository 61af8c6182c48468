"""`distrec train from=RUN`: a run that starts from the best weights of another, on a log that has grown since.

Shapes: I items, J items of the other run.
"""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Int
from torch import Tensor, nn

from distrec import config as cfg
from distrec import knobs
from distrec.data import item_codes, prepared, store
from distrec.data.preparation import growth
from distrec.data.prepared import Prepared
from distrec.engine.checkpoint import Checkpoints
from distrec.engine.parallel import Copies
from distrec.jobs.parts.assemble import Parts, find_part
from distrec.jobs.parts.identity import ANCESTOR, CHECKPOINT, DATA, made_by, settings
from distrec.jobs.parts.work import Work
from distrec.runtime import log


class Parent(NamedTuple):
    """`then`: the data of the run; `row`: the number there of each item of the new data, -1 for a new one; `made`: what
    stamps say of it."""

    run: Path
    checkpoint: Path
    then: Prepared
    row: Int[np.ndarray, " I"]
    made: dict[str, Any]

    def load(self, model: nn.Module) -> None:
        """Give the model the weights of the checkpoint; what belongs to new items keeps its fresh start."""
        weights = safetensors.torch.load_file(self.checkpoint / "model.safetensors")
        own = Copies(model).weights()
        if keys := sorted(weights.keys() ^ own.keys()):
            raise ValueError(f"from={self.run}: {keys[0]} is a weight of one of both models only; train anew")
        rows: Any = torch.from_numpy(self.row)
        for name, tensor in own.items():
            if name in getattr(model, "item_rows", ()):
                fresh = tensor.cpu().clone()
                fresh[rows >= 0] = weights[name][rows[rows >= 0]].to(fresh.dtype)
                weights[name] = fresh
            if weights[name].shape != tensor.shape:
                raise ValueError(
                    f"from={self.run}: {name} has the shape {tuple(weights[name].shape)}, here {tuple(tensor.shape)}; train anew"
                )
        Copies(model).restore(weights)


def begun(work: Work) -> dict[str, Any]:
    """What stamps say of the parent of a run that has checkpoints of its own already; nothing of one that has none.

    Such a run needs its parent no more.   Raises: ValueError when it started from another run than the one that is named.
    """
    before = made_by(work.config.out) if work.parent and work.config.out else {}
    if not before.get(CHECKPOINT):
        return {}
    now = _identity(work.parent) if work.parent else None
    if now is None:
        log(f"from={work.parent} is not there any more: {work.config.out} goes on from its own checkpoint")
    elif before.get(ANCESTOR, now) != now:
        raise ValueError(
            f"{work.config.out} holds another run (it started from the weights of another from=RUN): choose another out=DIR"
        )
    return {key: before[key] for key in (CHECKPOINT, ANCESTOR, DATA) if key in before}


def _identity(run: Path) -> str | None:
    """What all checkpoints of a run have in common; None where it has none."""
    for folder in sorted((run / "checkpoints").glob("step-*")):
        with contextlib.suppress(ValueError):
            return store.digest(store.read_stamp(folder)["made_by"])
    return None


def parent_of(work: Work) -> Parent | None:
    """The run that this one starts from, all its bytes checked, before anything is made.

    Raises: ValueError when its data or those of a run that it started from are not at hand, when it knows no item of these
    data, or knows what they hold out.
    """
    if work.parent is None:
        return None
    run, root = work.parent, work.config.data.root
    if (run / store.STAMP).exists():
        store.verify_stamped(run)
    checkpoint = run / "checkpoints" / Checkpoints(run / "checkpoints", {}).best()
    made = store.verify(checkpoint)["made_by"]
    if CHECKPOINT in made and DATA not in made:
        raise ValueError(
            f"from={run} started from another run, and a former version of distrec did not write down from which data: "
            "train anew"
        )
    stamps = [*made.get(DATA, []), made["data"]]
    ancestors = [_data(root, stamp, run) for stamp in stamps]
    then = ancestors[-1]
    row = growth.numbers(then.items, work.data.items)
    if not (row >= 0).any():
        raise ValueError(
            f"from={run}: none of its {then.n_items:,} items is among these {work.data.n_items:,}, which are other data "
            f"(data.source={work.config.data.source}): name those of the run, as by distrec train {run}/config.yaml from={run} …"
        )
    for data in ancestors:
        growth.check_held_out(data, work.data, run)
    gone = then.n_items - int((row >= 0).sum())
    log(
        f"starting from {checkpoint}: {(row >= 0).sum():,} items are known, {(row < 0).sum():,} new"
        + (f", {gone:,} gone" if gone else "")
    )
    origin = {CHECKPOINT: store.content(checkpoint), ANCESTOR: _identity(run), DATA: stamps}
    return Parent(run, checkpoint, then, row, origin)


def _data(root: Path, stamp: str, run: Path) -> Prepared:
    folder = growth.find(root, stamp)
    if folder is None:
        raise ValueError(
            f"from={run}: the data of that run, or of one that it started from, are not in data.root={root}, so that nobody "
            "can tell what it was trained on: give the data.root that it had"
        )
    store.verify(folder)
    return prepared.load(folder)


def check(work: Work) -> None:
    """Raise ValueError, before anything is read, when the config's model cannot start from the run that is named."""
    if work.parent is None:
        return
    model, run = work.config.model, work.parent
    if not isinstance(model, knobs.SasRec | knobs.CodeModel):
        why = "joins item vectors that are made anew with the data" if model.name == "frellm" else "only counts"
        raise ValueError(
            f"from={run}: model.name={model.name} {why} and cannot go on from a run; train it without from="
        )
    if work.config.out is not None and work.config.out.resolve() == run.resolve():
        raise ValueError(f"from={run} is out itself, whose weights stay as they are: choose another out=DIR")
    if isinstance(model, knobs.CodeModel) and model.user_tokens:
        raise ValueError(
            f"from={run}: model.user_tokens={model.user_tokens} belong to users' numbers, which new users move; use "
            "model.user_tokens=0, or train anew"
        )
    then = settings(cfg.load([str(run / "config.yaml")]))
    now = settings(work.config)
    for key in sorted(key for key in then.keys() | now.keys() if key.startswith("model.")):
        if then.get(key) != now.get(key):
            raise ValueError(
                f"from={run}: {key} was {then.get(key)!r}, now {now.get(key)!r}; a run that goes on has the same model: "
                f"use the former, or train anew"
            )


def check_codes(work: Work, parts: Parts, parent: Parent) -> None:
    """Raise ValueError when an item has other codes than the weights were trained on."""
    if "codes" not in parts.found:
        return
    config = cfg.load([str(parent.run / "config.yaml"), f"data.root={work.config.data.root}"])
    folder = find_part(config, "codes", made_by(parent.run)["codes"])
    before, now = item_codes.load(folder, parent.then), item_codes.load(parts.found["codes"], work.data)
    known = np.flatnonzero(parent.row >= 0)
    is_same = before.sizes == now.sizes and torch.equal(_at(now.codes, known), _at(before.codes, parent.row[known]))
    if not is_same:
        raise ValueError(
            f"from={parent.run}: its items have other codes now; `distrec quantize --assign-only={folder} …` gives codes to "
            "the new items and leaves the known ones theirs: give its folder as model.codes=FOLDER"
        )


def _at(codes: Tensor, rows: np.ndarray) -> Tensor:
    return codes[torch.from_numpy(rows)]
