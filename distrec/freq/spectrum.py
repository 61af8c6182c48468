"""How many directions a matrix has, always with the tolerance at which they were counted.

Shapes: n × m, any matrix.
"""

import torch
from jaxtyping import Float
from torch import Tensor

TOLERANCES = (1e-2, 1e-6)  # of the largest singular value


def ranks(matrix: Float[Tensor, "n m"]) -> dict[str, float]:
    """rank@τ: how many singular values exceed τ times the largest; effective_rank: exp of the entropy of their shares.

    Source: Roy & Vetterli 2007 (effective rank), which needs no tolerance.
    """
    values = torch.linalg.svdvals(matrix.detach().double())
    share = values / values.sum().clamp(min=1e-300)
    entropy = -(share * share.clamp(min=1e-300).log()).sum()
    counted = {f"rank@{tolerance:g}": int((values > tolerance * values[0]).sum()) for tolerance in TOLERANCES}
    return {**counted, "effective_rank": float(entropy.exp())}
