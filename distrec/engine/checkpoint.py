"""Checkpoints of a run: what trains, and where it stands; complete or absent, every byte verified.

`checkpoints/step-SSSSSSSS-EEEE` (steps done, evaluations done) holds model.safetensors (trainable
weights and buffers), optimizer.safetensors and state.json, under the stamp that every artefact has.
There is no random state to save: what a step draws is a pure function of (seed, step, rank).
"""

import copy
import json
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from distrec.data import store
from distrec.engine.parallel import Parallel, State
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
    losses: list[float] = field(default_factory=list)  # of the steps since the last line of the journal

    @property
    def name(self) -> str:
        return f"step-{self.step:08d}-{self.evaluations:04d}"


class Checkpoints:
    """The checkpoints of one run folder.  `made_by`: what must be equal for a checkpoint to be of this run.

    `is_async`: a save returns as soon as it has a copy; one thread commits it.  At most one commit is in flight, and who
    reads, saves again, or leaves a `with` of this object waits for it.
    """

    def __init__(self, folder: Path, made_by: Mapping[str, Any], is_async: bool = False):
        self.folder = folder
        self.made_by = made_by
        self._was_read_back = False
        self._thread = ThreadPoolExecutor(1) if is_async else None
        self._flight: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """An error that is on its way already is not hidden by that of a commit."""
        try:
            self.wait()
        except Exception as error:
            if kind is None:
                raise
            log(f"WARNING: the latest checkpoint was not saved: {error}")

    def save(self, held: Parallel, progress: Progress, writes: bool = True) -> None:
        """Commit one checkpoint, then remove those that are neither among the latest nor the best of one of them.

        To be called by all processes, which put the parts together; one of them `writes`.

        Raises: what wait() raises.
        """
        weights, moments = held.weights(), held.moments()
        if not writes:
            return
        self.wait()
        if self._thread is None:
            self._commit(weights, moments, progress)
        else:
            self._flight = self._thread.submit(
                self._commit, _copied(weights), _copied(moments), copy.deepcopy(progress)
            )

    def wait(self) -> None:
        """Until no commit is in flight.   Raises: what the last one raised, once."""
        if self._flight is None:
            return
        failure = self._flight.exception()
        self._flight = None
        if failure is not None:
            raise failure

    def _commit(self, weights: State, moments: State, progress: Progress) -> None:
        def fill(scratch: Path) -> None:
            _write(scratch / "model.safetensors", weights)
            _write(scratch / "optimizer.safetensors", moments)
            (scratch / "state.json").write_text(json.dumps(asdict(progress), indent=1))

        store.write(self.folder / progress.name, self.made_by, fill)
        if not self._was_read_back:
            self._read_back(progress.name, {"model": weights, "optimizer": moments})
        latest = self._found()[:KEEP]
        bests = {json.loads((path / "state.json").read_text())["best_checkpoint"] for path in latest}
        for old in self._found()[KEEP:]:
            if old.name not in bests:
                store.remove(old)

    def _read_back(self, name: str, saved: Mapping[str, State]) -> None:
        """Compare a process's first save with what was to be saved.   Raises: OSError where they differ."""
        for part, wanted in saved.items():
            found = safetensors.torch.load_file(self.folder / name / f"{part}.safetensors")
            if found.keys() != wanted.keys() or not all(_same(found[key], wanted[key]) for key in found):
                raise OSError(
                    f"{self.folder / name}: {part}.safetensors does not read as it was written: a broken disk"
                )
        self._was_read_back = True

    def latest_good(self) -> str | None:
        """The name of the latest good checkpoint; None where no checkpoint ever was.   To be called by one process.

        A corrupt one is named loudly and set aside; the one before it is taken.

        Raises: ValueError when all are corrupt, when the best one is, or when one is of another run: nothing
        starts over silently.
        """
        self.wait()
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
                f"no good checkpoint is left in {self.folder}; nothing was started over: train anew into another out=DIR"
            )
        return None

    def _verify_best(self, best: str) -> None:
        try:
            store.verify(self.folder / best)
        except ValueError as fault:
            raise ValueError(
                f"the best checkpoint is lost ({fault}); nothing can stand in for it: train anew into another out=DIR"
            ) from None

    def load(self, name: str, held: Parallel, only_weights: bool = False) -> Progress:
        """One checkpoint by name, verified, on however many processes it was saved."""
        self.wait()
        path = self.folder / name
        store.verify(path, self.made_by)
        found = safetensors.torch.load_file(path / "model.safetensors")
        expected = held.weights()
        wrong = [
            key
            for key in found.keys() | expected.keys()
            if key not in found or key not in expected or found[key].shape != expected[key].shape
        ]
        if wrong:
            raise ValueError(f"{path}: {sorted(wrong)[0]} does not fit this model")
        held.restore(found, None if only_weights else safetensors.torch.load_file(path / "optimizer.safetensors"))
        return Progress(**json.loads((path / "state.json").read_text()))

    def best(self) -> str:
        """The name of the best checkpoint so far.   Raises: ValueError when none was evaluated yet."""
        self.wait()
        for path in self._found():
            store.verify(path)
            if name := json.loads((path / "state.json").read_text())["best_checkpoint"]:
                return name
        raise ValueError(f"{self.folder} holds no evaluated checkpoint: none was written yet, or they were removed")

    def _found(self) -> list[Path]:
        """Latest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)


def _copied(state: State) -> State:
    return {name: tensor.to("cpu", copy=True) for name, tensor in state.items()}


def _write(path: Path, state: State) -> None:
    """Without a copy and without the interpreter's lock, so that training goes on beside it.   Raises: OSError."""
    try:
        safetensors.torch.save_file(state, path)
    except safetensors.SafetensorError as error:
        raise OSError(f"{path.parent.parent}: {error}") from None


def _same(one: torch.Tensor, two: torch.Tensor) -> bool:
    """To the last bit, NaN included."""
    return torch.equal(one.flatten().view(torch.uint8), two.cpu().flatten().view(torch.uint8))
