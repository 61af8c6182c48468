"""What the parts of an analysis work on, and what each hands back."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from distrec import config as cfg
from distrec.data import batches, store
from distrec.data.batches import Batch
from distrec.data.prepared import Prepared
from distrec.jobs.pages.page import Section

SETTINGS = {"users": 1000, "steps": 60, "against": ""}  # of an analysis, where nothing else is asked
_HOUSE = Path(__file__).parents[2]
_CODE = (
    "jobs/analysis/*.py", "freq/*.py", "engine/evaluation/*.py", "engine/costs/anatomy.py", "jobs/pages/learnt.py",
    "models/attention.py", "models/hooks.py", "models/parts.py",
)  # fmt: skip
_TOGETHER = 64  # users read at once


@dataclass(frozen=True)
class Subject:
    """A run with the weights of its best checkpoint.

    `out`: its folder; `folder`: where pictures go; `users`: the most who are read and ranked, the same for every
    model of the same data and seed; `steps`: of Lanczos on large graphs; `against`: another run, of the same data.
    """

    out: Path
    config: cfg.Config
    model: Any
    data: Prepared
    device: torch.device
    folder: Path
    users: int
    steps: int = 60
    against: Path | None = None
    seed: int = 0

    @cached_property
    def drawn(self) -> Prepared:
        """The data, where the users who were drawn are the only ones with a validation target."""
        users, _ = self.data.targets("valid")
        rng = np.random.default_rng([self.seed, self.data.n_users])
        chosen = users[rng.permutation(len(users))[: self.users]]
        end = self.data.train_end.copy()
        end[chosen] = self.data.valid_end[chosen]
        return replace(self.data, valid_end=end)

    @property
    def n_drawn(self) -> int:
        return len(self.drawn.targets("valid")[0])

    def batches(self) -> Iterator[Batch]:
        """Histories before the validation target, of users drawn once, the longest window that the model reads."""
        samples = batches.evaluation(self.drawn, "valid", self.model.max_len)
        rows = np.argsort(samples.lengths(), kind="stable")
        for low in range(0, len(rows), _TOGETHER):
            yield batches.collate(self.drawn, samples, rows[low : low + _TOGETHER]).to(self.device)


def code() -> str:
    """The hash of what works out an analysis: another one's figures may differ."""
    files = [path for pattern in _CODE for path in sorted(_HOUSE.glob(pattern))]
    return store.digest([store.file_digest(path) for path in files])


class Part(NamedTuple):
    """A section of the page, and its figures for programs."""

    section: Section
    figures: dict[str, Any]
