"""Joining a launch: one process or many, by Accelerate."""

import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import GradientAccumulationPlugin

from distrec.knobs import Train


def join(config: Train, out: Path | None = None) -> Accelerator:
    """The accelerator of this launch.

    Raises: ValueError when fewer processes joined than were started (each would train alone, silently).
    """
    on_cpu = not torch.cuda.is_available()
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    # without find_unused_parameters DDP lays its buckets out anew after the first backward pass: a resumed run
    # would sum over three or more ranks in another order than the uninterrupted one
    handlers: list[Any] = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    if on_cpu and asked > 1:
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    tracked: Any = list(config.trackers)
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=config.precision,
        log_with=tracked or None,
        project_dir=out or "runs",
        kwargs_handlers=handlers,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # ours; whatever a launch file says
    )
    if accelerator.num_processes != asked:
        raise ValueError(
            f"{asked} processes were started but {accelerator.num_processes} joined: start them with torchrun"
        )
    return accelerator
