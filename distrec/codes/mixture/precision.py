"""Products with float32 accumulation, at the speed of tensor cores where there are some.

    float32   as it stands
    tf32      factors rounded to 10 bits of mantissa
    bf16x3    factors split into two bfloat16 parts; three products, 16 bits of mantissa

A result is never rounded to bfloat16.  On a CPU the modes round as a GPU would, so that their error can be measured there.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Precision = Literal["float32", "tf32", "bf16x3"]
ROUNDING: dict[Precision, float] = {"float32": 2**-23, "tf32": 2**-11, "bf16x3": 2**-16}  # relative, of a product


def product(
    a: Float[Tensor, "n S"], b: Float[Tensor, "K S"], precision: Precision, out: Tensor | None = None
) -> Float[Tensor, "n K"]:
    """a · bᵀ; float64 factors are multiplied in float64 whatever the mode."""
    if precision == "float32" or a.dtype == torch.float64:
        return torch.mm(a, b.T, out=out) if out is not None else torch.mm(a, b.T)
    if precision == "tf32":
        return _tf32(a, b)
    (a_high, a_low), (b_high, b_low) = _split(a), _split(b)
    return _bf16(a_high, b_high) + (_bf16(a_high, b_low) + _bf16(a_low, b_high))


def _tf32(a: Tensor, b: Tensor) -> Tensor:
    if a.device.type != "cuda":
        return _to_tf32(a) @ _to_tf32(b).T
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return a @ b.T
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _to_tf32(x: Tensor) -> Tensor:
    """Round to nearest on the 13 bits that tf32 lacks."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    high = x.bfloat16()
    return high, (x - high.float()).bfloat16()


def _bf16(a: Tensor, b: Tensor) -> Tensor:
    if a.device.type == "cuda":
        return torch.mm(a, b.T, out_dtype=torch.float32)
    return a.float() @ b.float().T  # products of bfloat16 are exact in float32
