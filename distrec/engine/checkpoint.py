"""Checkpoints of a run: what trains, and where it stands; complete or absent, every byte verified.

`checkpoints/step-SSSSSSSS-EEEE` (steps done, evaluations done) holds model.safetensors (trainable
weights and buffers), optimizer.safetensors and state.json, under the stamp that every artefact has.
There is no random state to save: what a step draws is a pure function of (seed, step, rank).
"""

import json
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
        """Commit one checkpoint, then remove those that are neither among the latest nor the best."""

        def fill(scratch: Path) -> None:
            safetensors.torch.save_file(_weights(model), scratch / "model.safetensors")
            safetensors.torch.save_file(_moments(model, optimizer), scratch / "optimizer.safetensors")
            (scratch / "state.json").write_text(json.dumps(asdict(progress), indent=1))

        store.write(self.folder / progress.name, self.made_by, fill)
        for old in self._found()[KEEP:]:
            if old.name != progress.best_checkpoint:
                store.remove(old)

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer, repair: bool) -> Progress:
        """Load the latest good checkpoint into model and optimizer; a fresh Progress when there is none at all.

        A corrupt one is named, and with `repair` (one process) set aside; the one before it is taken.

        Raises: ValueError when all are corrupt, or when one is of another run: nothing starts over silently.
        """
        faults = []
        if repair:
            store.sweep(self.folder)
        for path in self._found():
            try:
                store.verify(path)
            except ValueError as fault:
                faults.append(str(fault))
                log(f"WARNING: {fault}\nWARNING: falling back to the checkpoint before {path.name}")
                if repair:
                    path.rename(path.with_name(f"corrupt-{path.name}"))
                continue
            store.verify(path, self.made_by)
            progress = self.load(path.name, model, optimizer)
            log(f"resuming {path} (epoch {progress.epoch + 1}, step {progress.step})")
            return progress
        if faults:
            raise ValueError(
                f"no good checkpoint is left in {self.folder}; nothing was started over. Remove the run folder to start again"
            )
        return Progress()

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
        # AdamW's step counter stays on the CPU, in float32
        optimizer.state[parameter][moment] = value.to(parameter.device) if value.shape else value
