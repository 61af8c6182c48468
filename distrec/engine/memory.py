"""A device that runs out of memory: one line that says what was going on, how full the device is, and what to lower."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import wraps

import torch

from distrec.runtime import FAILED

_GIB = 2**30
# the innermost of these files on the stack says what was going on
_REMEDIES = {
    "distrec/engine/evaluation/": (
        "ranking",
        "Lower score.batch_users (the ranks stay the same), or start several processes with score.shard_items=true.",
    ),
    "distrec/engine/trainer.py": (
        "training",
        "Lower train.micro_tokens (the same steps in more passes); for a language model also set "
        "model.backbone.checkpointing=true, or lower model.logits_mib.",
    ),
    "distrec/jobs/embed.py": ("embedding", "Lower embed.batch, or embed.max_tokens."),
    "distrec/jobs/analysis/": ("analysing", "Lower users, or take fewer parts."),
    "distrec/jobs/codes/": (
        "quantizing",
        "Start more processes (each holds its share of the items), or set codes.pca to fewer dimensions; "
        "with codes.name=rqvae lower codes.batch.",
    ),
    "distrec/jobs/parts/assemble.py": (
        "loading the model",
        "Set model.backbone.dtype=bfloat16 or model.backbone.quantise=nf4, or launch with launch/zero3.yaml.",
    ),
}
_ELSEWHERE = ("the command", "Take a larger GPU, or smaller sizes in the config: distrec plan says what a run takes.")


def explained(main: Callable[[Sequence[str]], int | None]) -> Callable[[Sequence[str]], int | None]:
    """A command's main(argv) that ends with exit code 1 and one line where the device runs out of memory.

    Every process says it of its own device.  DISTREC_TRACEBACK=1 shows the traceback too.
    """

    @wraps(main)
    def guarded(argv: Sequence[str]) -> int | None:
        try:
            return main(argv)
        except torch.OutOfMemoryError as error:
            if os.environ.get("DISTREC_TRACEBACK"):
                traceback.print_exc()
            rank = os.environ.get("RANK", "0")
            print(f"error{'' if rank == '0' else f' on rank {rank}'}: {reason(error)}", file=sys.stderr, flush=True)
            return FAILED

    return guarded


def reason(error: torch.OutOfMemoryError) -> str:
    """What ran out while what was going on, how full the device is, and the settings to lower; one line."""
    files = [frame.filename.replace(os.sep, "/") for frame in reversed(traceback.extract_tb(error.__traceback__))]
    doing, remedy = next((_REMEDIES[part] for file in files for part in _REMEDIES if part in file), _ELSEWHERE)
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))
    size = f" for {wanted[1]} more" if wanted else ""
    return f"{doing} ran out of memory{size}{_fullness()}. {remedy}"


def _fullness() -> str:
    """The device, what is free on it, and what this process's tensors hold."""
    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    return (
        f" on {torch.cuda.get_device_name()} (cuda:{torch.cuda.current_device()}): {free / _GIB:.1f} of {total / _GIB:.1f} GiB "
        f"are free, tensors of this process hold {torch.cuda.memory_allocated() / _GIB:.1f} GiB"
    )
