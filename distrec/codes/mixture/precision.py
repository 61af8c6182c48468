"""Products with float32 accumulation, at the speed of tensor cores where there are some.

    float32   as it stands, whatever the process's own TF32 switch says
    tf32      factors rounded to 10 bits of mantissa
    bf16x3    factors split into two bfloat16 parts; three products, 16 bits of mantissa

A result is never rounded to bfloat16.  On a CPU the modes round as a GPU would, so that their error can be measured there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Precision = Literal["float32", "tf32", "bf16x3"]
ROUNDING: dict[Precision, float] = {"float32": 2**-23, "tf32": 2**-11, "bf16x3": 2**-16}  # relative, of a product
Factor = tuple[Tensor, ...]  # a matrix, ready for products: itself, or its high and its low half


@contextmanager
def tf32(is_allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in CUDA's float32 products; the process's own setting returns at the end."""
    switch = torch.backends.cuda.matmul
    before = switch.allow_tf32
    switch.allow_tf32 = is_allowed
    try:
        yield
    finally:
        switch.allow_tf32 = before


def factor(x: Float[Tensor, "n S"], precision: Precision) -> Factor:
    """Prepare a matrix for the products of a precision; float64 stays float64 whatever the mode."""
    if precision == "float32" or x.dtype == torch.float64:
        return (x,)
    on_cpu = x.device.type == "cpu"
    if precision == "tf32":
        return (_to_tf32(x),) if on_cpu else (x,)
    high = x.bfloat16()
    low = torch.sub(x, high, out=torch.empty_like(high))
    return (high.float(), low.float()) if on_cpu else (high, low)  # products of bfloat16 are exact in float32


def product(
    a: Factor, b: Factor, precision: Precision, out: Tensor | None = None, plus: Tensor | None = None
) -> Float[Tensor, "n K"]:
    """Return a · bᵀ, or plus + a · bᵀ; `plus` is a row for all rows, or a matrix, which may be `out`.

    `out` is a place where the result may be put, not one where it must lie: use what is returned.

    Source: bf16x3 as in Henry, Tang & Heinecke 2019: the product of the two low halves is below float32's rounding.
    """
    with tf32(precision == "tf32"):
        if len(a) == 1:
            return _multiply(a[0], b[0], plus, out)
        (a_high, a_low), (b_high, b_low) = a, b
        small = _multiply(a_low, b_high, _multiply(a_high, b_low, plus))
        return _multiply(a_high, b_high, small, out)


def transposed(a: Factor) -> Factor:
    return tuple(half.T for half in a)


def _multiply(a: Tensor, b: Tensor, plus: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    if a.dtype == torch.bfloat16:
        whole = torch.mm(a, b.T, out_dtype=torch.float32)  # torch's addmm does not mix the two types everywhere
        return whole if plus is None else whole.add_(plus)
    if plus is None:
        return torch.mm(a, b.T, out=out) if out is not None else torch.mm(a, b.T)
    return torch.addmm(plus, a, b.T, out=out) if out is not None else torch.addmm(plus, a, b.T)


def _to_tf32(x: Tensor) -> Tensor:
    """Round to nearest on the 13 bits that tf32 lacks."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)
