"""`distrec train from=RUN`: a run that starts from the best weights of another, on a log that has grown since.

Shapes: I items, J items of the other run.
"""

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
from distrec.jobs.parts.identity import made_by, settings
from distrec.jobs.parts.work import Work
from distrec.runtime import log


class Parent(NamedTuple):
    """`row`: the number there of each item of the new data, -1 for a new one."""

    run: Path
    checkpoint: Path
    content: str
    row: Int[np.ndarray, " I"]

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


def check(work: Work) -> None:
    """Raise ValueError, before anything is made, when the config's model cannot start from the run that is named."""
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


def parent_of(work: Work, parts: Parts) -> Parent | None:
    """The run that this one starts from, all its bytes checked.

    Raises: ValueError when its data or codes are not at hand, its codes are others, or it knows what is held out now.
    """
    if work.parent is None:
        return None
    run, root = work.parent, work.config.data.root
    made = made_by(run)
    if (run / store.STAMP).exists():
        store.verify_stamped(run)
    checkpoint = run / "checkpoints" / Checkpoints(run / "checkpoints", {}).best()
    store.verify(checkpoint)
    folder = growth.find(root, made["data"])
    if folder is None:
        raise ValueError(
            f"from={run}: the data of that run are not in data.root={root}, so that its items are not known by name: give "
            "the data.root that it had"
        )
    store.verify(folder)
    then = prepared.load(folder)
    row = growth.numbers(then.items, work.data.items)
    growth.check_held_out(then, work.data, run)
    if "codes" in made:
        _check_codes(work, parts, then, row)
    gone = then.n_items - int((row >= 0).sum())
    log(
        f"starting from {checkpoint}: {(row >= 0).sum():,} items are known, {(row < 0).sum():,} new"
        + (f", {gone:,} gone" if gone else "")
    )
    return Parent(run, checkpoint, store.content(checkpoint), row)


def _check_codes(work: Work, parts: Parts, then: Prepared, row: Int[np.ndarray, " I"]) -> None:
    """Raise ValueError when an item has other codes than the weights were trained on."""
    assert work.parent is not None
    config = cfg.load([str(work.parent / "config.yaml"), f"data.root={work.config.data.root}"])
    folder = find_part(config, "codes", made_by(work.parent)["codes"])
    before, now = item_codes.load(folder, then), item_codes.load(parts.found["codes"], work.data)
    known = np.flatnonzero(row >= 0)
    is_same = before.sizes == now.sizes and torch.equal(_at(now.codes, known), _at(before.codes, row[known]))
    if not is_same:
        raise ValueError(
            f"from={work.parent}: its items have other codes now; `distrec quantize --assign-only={folder} …` gives codes to "
            "the new items and leaves the known ones theirs: give its folder as model.codes=FOLDER"
        )


def _at(codes: Tensor, rows: np.ndarray) -> Tensor:
    return codes[torch.from_numpy(rows)]
