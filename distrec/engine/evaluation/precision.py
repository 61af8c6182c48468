"""In which precision everything is evaluated: float32, whatever a model was trained in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_products() -> Iterator[None]:
    """Turn TF32 off inside, and back to what it was at the end: 10 bits of mantissa would make ties and move ranks.

    A backbone that is stored in bfloat16 or in 4 bits computes in its own type all the same.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
