"""Checkpoints of a run: what trains, and where it stands; complete or absent, every byte verified.

`checkpoints/step-SSSSSSSS-EEEE` (steps done, evaluations done) holds model.safetensors (trainable
weights and buffers), optimizer.safetensors and state.json, under the stamp that every artefact has.
There is no random state to save: what a step draws is a pure function of (seed, step, rank).
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from distrec.data import store
from distrec.runtime import log

KEEP = 2  # the latest ones; the best one stays as well


@dataclass
class Progress:
    """Where a run stands; the next thing it does follows from this and the config."""

    step: int = 0  # optimiser steps done
    epoch: int = 0
    position: int = 0  # steps done in this epoch
    evaluations: int = 0
    best: float = -1.0  # NDCG@10 on validation
    best_checkpoint: str = ""
    stale: int = 0  # evaluations since the best
    skips: int = 0  # non-finite steps in a row
    stopped_early: bool = False

    @property
    def name(self) -> str:
        return f"step-{self.step:08d}-{self.evaluations:04d}"


class Checkpoints:
    """The checkpoints of one run folder.  `made_by`: what must be equal for a checkpoint to be of this run."""

    def __init__(self, folder: Path, made_by: Mapping[str, Any]):
        self.folder = folder
        self.made_by = made_by

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Commit one checkpoint, then remove those that are neither among the latest nor the best of one of them."""

        def fill(scratch: Path) -> None:
            (scratch / "model.safetensors").write_bytes(safetensors.torch.save(_weights(model)))
            (scratch / "optimizer.safetensors").write_bytes(safetensors.torch.save(_moments(model, optimizer)))
            (scratch / "state.json").write_text(json.dumps(asdict(progress), indent=1))

        store.write(self.folder / progress.name, self.made_by, fill)
        latest = self._found()[:KEEP]
        bests = {json.loads((path / "state.json").read_text())["best_checkpoint"] for path in latest}
        for old in self._found()[KEEP:]:
            if old.name not in bests:
                store.remove(old)

    def latest_good(self) -> str | None:
        """The name of the latest good checkpoint; None where no checkpoint ever was.   To be called by one process.

        A corrupt one is named loudly and set aside; the one before it is taken.

        Raises: ValueError when all are corrupt, when the best one is, or when one is of another run: nothing
        starts over silently.
        """
        store.sweep(self.folder)
        for path in self._found():
            try:
                store.verify(path)
            except ValueError as fault:
                log(f"WARNING: {fault}\nWARNING: falling back to the checkpoint before {path.name}")
                path.rename(path.with_name(f"corrupt-{path.name}-{uuid.uuid4().hex[:8]}"))
                continue
            store.verify(path, self.made_by)
            if best := json.loads((path / "state.json").read_text())["best_checkpoint"]:
                self._verify_best(best)
            return path.name
        if any(self.folder.glob("corrupt-*")):
            raise ValueError(
                f"no good checkpoint is left in {self.folder}; nothing was started over. "
                "Remove the run folder to start again"
            )
        return None

    def _verify_best(self, best: str) -> None:
        try:
            store.verify(self.folder / best)
        except ValueError as fault:
            raise ValueError(
                f"the best checkpoint is lost ({fault}); nothing can stand in for it. Remove the run folder to start again"
            ) from None

    def load(self, name: str, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Progress:
        """One checkpoint by name, verified, into model and (if given) optimizer."""
        path = self.folder / name
        store.verify(path, self.made_by)
        found = safetensors.torch.load_file(path / "model.safetensors")
        expected = _weights(model)
        wrong = [
            key
            for key in found.keys() | expected.keys()
            if key not in found or key not in expected or found[key].shape != expected[key].shape
        ]
        if wrong:
            raise ValueError(f"{path}: {sorted(wrong)[0]} does not fit this model")
        with torch.no_grad():
            for key, tensor in expected.items():
                tensor.copy_(found[key])
        if optimizer is not None:
            _restore(model, optimizer, safetensors.torch.load_file(path / "optimizer.safetensors"))
        return Progress(**json.loads((path / "state.json").read_text()))

    def best(self) -> str:
        """The name of the best checkpoint so far.   Raises: ValueError when none was evaluated yet."""
        for path in self._found():
            store.verify(path)
            if name := json.loads((path / "state.json").read_text())["best_checkpoint"]:
                return name
        raise ValueError(f"{self.folder} holds no evaluated checkpoint yet")

    def _found(self) -> list[Path]:
        """Latest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    trained = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    return trained | {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, value in moments.items():
        name, _, moment = key.rpartition("/")
        parameter = parameters[name]
        # AdamW's step counter stays on the CPU
        optimizer.state[parameter][moment] = value if moment == "step" else value.to(parameter.device)
