"""States of a long fit on disk: the latest two, each complete or absent."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from distrec.data import store
from distrec.runtime import Ranks, log

SAVE_SECONDS = 5  # between saved states


class SavedStates:
    """`folder` holds them; `made` is what a state must agree with to be gone on from."""

    def __init__(self, folder: Path, made: Mapping[str, Any], ranks: Ranks):
        self._folder, self._made, self._ranks = folder, made, ranks

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Written by the main process; every rank has the same state."""
        if not self._ranks.is_main:
            return
        numbers = self._numbers()
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
        fill = partial(_write, tensors=tensors)
        store.write(self._place(max(numbers, default=-1) + 1), self._made, fill)
        for old in numbers[:-1]:
            store.remove(self._place(old))

    def load(self, device: torch.device) -> dict[str, Tensor] | None:
        """The latest intact state, the same on every rank; a broken one is named and left out."""
        number = self._ranks.gather(self._latest() if self._ranks.is_main else None)[0]
        if number is None:
            return None
        store.verify(self._place(number), self._made)
        log(f"going on from {self._place(number)}")
        state = safetensors.torch.load_file(self._place(number) / "state.safetensors")
        return {name: value.to(device) for name, value in state.items()}

    def _latest(self) -> int | None:
        for number in reversed(self._numbers()):
            try:
                store.verify(self._place(number), self._made)
                return number
            except ValueError as error:
                log(f"warning: {error}")
        return None

    def remove(self) -> None:
        if self._ranks.is_main:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _place(self, number: int) -> Path:
        return self._folder / f"state-{number:06d}"

    def _numbers(self) -> list[int]:
        return sorted(int(path.name.removeprefix("state-")) for path in self._folder.glob("state-*"))


def drain(
    states: Iterator[dict[str, Tensor]],
    saved: SavedStates,
    ranks: Ranks,
    stop: Callable[[], bool],
    told: Callable[[Mapping[str, Tensor]], str],
) -> bool:
    """Run a fit to its end under a progress bar, saving now and then; False when stopped (and saved) before.

    `told`: how far a state is, in a few words.
    """
    latest, pause = time.monotonic(), SAVE_SECONDS
    with tqdm(states, unit="iteration", mininterval=0.5, disable=not ranks.is_main) as bar:
        for state in bar:
            bar.set_postfix_str(told(state), refresh=False)
            asked = any(ranks.gather(stop()))
            if asked or time.monotonic() - latest > pause:
                started = time.monotonic()
                saved.save(state)
                latest = time.monotonic()
                pause = max(SAVE_SECONDS, 10 * (latest - started))  # saving takes a tenth of the time at most
            if asked:
                return False
    return True


def _write(folder: Path, tensors: dict[str, Tensor]) -> None:
    safetensors.torch.save_file(tensors, folder / "state.safetensors")
