"""How many directions a matrix has, always with the tolerance at which they were counted.

Shapes: n × m, any matrix; k singular values.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

TOLERANCES = (1e-2, 1e-6)  # of the largest singular value


def ranks(matrix: Float[Tensor, "n m"]) -> dict[str, float]:
    """rank@τ: how many singular values exceed τ times the largest; effective_rank: exp of the entropy of their shares."""
    return {name: found.item() for name, found in counted(torch.linalg.svdvals(matrix.detach().double())).items()}


def counted(values: Float[Tensor, "*B k"]) -> dict[str, Shaped[Tensor, "*B"]]:
    """The same of matrices by their singular values, the largest first; a matrix of zeros has rank 0.

    Source: Roy & Vetterli 2007 (effective rank), which needs no tolerance.
    """
    share = values / values.sum(-1, keepdim=True).clamp(min=1e-300)
    entropy = -(share * share.clamp(min=1e-300).log()).sum(-1)
    found = {f"rank@{tolerance:g}": (values > tolerance * values[..., :1]).sum(-1) for tolerance in TOLERANCES}
    return {**found, "effective_rank": entropy.exp()}
