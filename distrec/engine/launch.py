"""Joining a launch: one process or many, by Accelerate."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import GradientAccumulationPlugin, TorchDynamoPlugin, parse_flag_from_env

from distrec.engine import numerics
from distrec.knobs import Train
from distrec.runtime import log


def check_trackers(config: Train) -> None:
    """Raise ValueError naming a tracker that is not installed: accelerate would go on without it, and its curves be missed."""
    installed = [str(tracker) for tracker in get_available_trackers()]
    for tracker in config.trackers:
        if tracker not in installed:
            raise ValueError(
                f"train.trackers={tracker} is not installed: pip install 'distrec[{tracker}]', or leave it out"
            )


def join(config: Train, out: Path | None = None, tracks: bool = False) -> Accelerator:
    """The accelerator of this launch.   `tracks`: whether it is to tell the config's trackers.

    Raises: ValueError when fewer processes joined than were started (each would train alone, silently), or when the
    launch asks for another precision than the config.
    """
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", config.precision):
        raise ValueError(
            f"the launch says mixed_precision={precision}, the config train.precision={config.precision}: "
            "leave it to train.precision"
        )
    numerics.set_up(config.precision, config.deterministic)
    on_cpu = not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    if on_cpu and config.precision == "tf32":
        log("train.precision=tf32 changes nothing here: a processor's products stay float32")
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    # without find_unused_parameters DDP lays its buckets out anew after the first backward pass: a resumed run
    # would sum over three or more ranks in another order than the uninterrupted one; buffers (item tables among them) are
    # the same everywhere from the start, and are not sent again at every step
    handlers: list[Any] = [DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)]
    zero = _zero(config) if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" else None
    if asked > 1 or zero:
        # tensors of GPUs over NCCL; objects and tensors of hosts over gloo, which neither fills GPUs nor waits for them.
        # DeepSpeed knows single backends only
        backend = "gloo" if on_cpu else "nccl" if zero else "cpu:gloo,cuda:nccl"
        handlers.append(InitProcessGroupKwargs(backend=backend, timeout=timedelta(minutes=config.timeout_min)))
    if not on_cpu and "LOCAL_RANK" in os.environ:  # accelerate does so after it joined, when each is on the first GPU
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    tracked: Any = list(config.trackers) if tracks else None
    accelerator = Accelerator(
        cpu=on_cpu and zero is None,  # accelerate refuses both; without a GPU it takes the CPU anyway
        mixed_precision="bf16" if config.precision == "bf16" and not zero else "no",
        deepspeed_plugin=zero,
        log_with=tracked or None,
        project_dir=out or "runs",
        kwargs_handlers=handlers,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # ours; whatever a launch file says
        dynamo_plugin=TorchDynamoPlugin(
            dynamic=True
        ),  # else each width of a batch is compiled anew, eight of them at most
    )
    if zero is not None:
        # transformers would cut a language model up while it reads it: it is sealed whole, first
        zero.dschf = None
    if accelerator.num_processes != asked:
        raise ValueError(
            f"{asked} processes were started but {accelerator.num_processes} joined: start them with torchrun"
        )
    return accelerator


def _zero(config: Train) -> Any:
    """DeepSpeed as the launch file wants it (stage, offload), with nothing left to its guesses."""
    import deepspeed
    from accelerate import DeepSpeedPlugin

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled at first start; gloo does as well
    stage = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    offload = os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none")
    os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)  # by which accelerate refuses a launch file beside a config
    if stage not in (1, 2, 3):
        raise ValueError(f"ZeRO stage {stage}: 1, 2 or 3; without any of them launch with launch/ddp.yaml")
    return DeepSpeedPlugin(
        hf_ds_config={
            "train_micro_batch_size_per_gpu": 1,  # ours; DeepSpeed is handed whole micro-batches
            "gradient_accumulation_steps": 1,
            "gradient_clipping": config.clip,
            "zero_optimization": {"stage": stage, "offload_optimizer": {"device": offload}},
            "zero_force_ds_cpu_optimizer": False,  # torch's AdamW, which needs no compiler
            # weights and optimiser stay float32, as without DeepSpeed; its own bf16 mode would cast them
            "torch_autocast": {"enabled": config.precision == "bf16", "dtype": "bfloat16"},
        },
    )
