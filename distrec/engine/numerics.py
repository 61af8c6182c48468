"""How products round, and whether a GPU takes the same order of addition each time: every switch set, none left to a default.

Switches of CUDA alone; a processor's products are float32 or bfloat16 as their tensors are.
"""

import os
from typing import Literal

import torch

Precision = Literal["no", "tf32", "bf16"]


def set_up(precision: Precision, deterministic: bool) -> None:
    """Set the process's switches, before its first product on a GPU.

    TF32 (10 bits of mantissa) is used where `precision` says so and nowhere else, convolutions included; sums of bfloat16
    products are kept in float32.  `deterministic`: operations that add in an order of their own are replaced, or refused by
    name.  Deviation: cuDNN's attention is off: it plans anew for each shape, about a second each on a Hopper card, and its
    backward pass is not deterministic.
    """
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    if torch.cuda.is_available():
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS refuses
        torch.use_deterministic_algorithms(deterministic)


def facts() -> dict[str, bool | str]:
    """The switches as they are now, for a run's provenance."""
    return {
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "bf16_reduced_sums": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "cudnn_attention": torch.backends.cuda.cudnn_sdp_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
