"""How a decoder attends to windows and packed rows: which form is used when, and how windows are moved for it.

    dense   A boolean mask B × 1 × T × T says which places a place sees.  It fits every row: padded, packed, both.
    causal  No mask.  Each row's sequence is moved to the front, so that its places see one another by being causal alone;
            padded places come after them, and no sequence sees those.

Shapes: B rows of a batch, T positions.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

SDPA = "sdpa"  # transformers' name of the scaled dot products of torch
IMPLEMENTATION = "distrec"  # the same under a name for which transformers makes no mask of its own
PLACES = "distrec_places"  # the layers' keyword that says where each place of the caller's rows stands among theirs
_HALF = (torch.bfloat16, torch.float16)


def form_of(
    device: torch.device, dtype: torch.dtype, is_window: bool, implementation: str
) -> Literal["dense", "causal"]:
    """Choose the form for rows on a device, states in a type.   `is_window`: each row is one sequence, padded on the left.

    `causal` on a GPU in bfloat16 (or float16, or under autocast): a mask shuts out the flash kernels, which keep no T × T
    weights and need no plan for each shape.
    `dense` for packed rows, which need the mask; in float32, for which there are no flash kernels; on a CPU, where the
    forms are equally fast and the reference's bits are kept; where another implementation was chosen, as for showing the
    attention weights.
    Deviation: FlexAttention and kernels for variable lengths would serve packed rows too, but the first is compiled for
    each shape and has no gradients on CPUs, and the second needs the sum of lengths on the host.  Batches are cut by
    length: there is little padding to save.
    """
    is_gpu = device.type == "cuda" and implementation in (SDPA, IMPLEMENTATION)
    is_half = is_gpu and (dtype in _HALF or torch.is_autocast_enabled(device.type))
    return "causal" if is_window and is_half else "dense"


def front(is_item: Bool[Tensor, "B T"]) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """(which place of its row comes to each place, where each place goes) when padding on the left goes to the right."""
    place = torch.arange(is_item.shape[1], device=is_item.device)
    padded = (~is_item).sum(1, keepdim=True)
    return (place + padded) % len(place), (place - padded) % len(place)
