"""What a job works with."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distrec import config as cfg
from distrec.data.prepared import Prepared
from distrec.runtime import Ranks


@dataclass(frozen=True)
class Work:
    """`stop()`: whether a signal asked to save and leave; `accelerator`: of jobs that train; `parent`: the folder of the
    run from whose best weights this one starts."""

    config: cfg.Config
    data: Prepared
    ranks: Ranks
    stop: Callable[[], bool]
    device: torch.device
    accelerator: Any = None
    parent: Path | None = None
