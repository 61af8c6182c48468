"""How many directions a matrix has, always with the tolerance at which they were counted; where states' energy lies.

Shapes: n × m, any matrix; T states, D channels, b bands.
"""

from typing import NamedTuple

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


class Bands(NamedTuple):
    """Shares of energy by band of frequency, low to high, and what white noise would have; NaN where a band is empty."""

    share: Float[Tensor, " b"]
    noise: Float[Tensor, " b"]


def band_energy(states: Float[Tensor, "T D"], basis: Float[Tensor, "T T"], n_bands: int) -> Bands:
    """How the energy of states lies over the frequencies of a basis.

    `basis`: eigenvectors in its columns, low frequencies first, of a graph's Laplacian or along time.  Each state is
    divided by its length first: the first token of a language model would else outweigh all others.  Band k holds the
    eigenvectors T · k // b … T · (k + 1) // b − 1, as many as can be of equal size, some none where T < b.

    Raises: ValueError when there is no band.
    """
    if n_bands < 1:
        raise ValueError(f"{n_bands} bands: at least 1")
    states = states.double()
    unit = states / states.norm(dim=1, keepdim=True).clamp(min=1e-300)
    energy = (basis.double().mT @ unit).square().sum(1)
    band = ((torch.arange(len(states)) + 1) * n_bands - 1).div(len(states), rounding_mode="floor").to(energy.device)
    count = torch.bincount(band, minlength=n_bands).double()
    share = torch.zeros(n_bands, dtype=torch.float64, device=energy.device).index_add_(0, band, energy)
    share, noise = share / energy.sum().clamp(min=1e-300), count / len(states)
    empty = count == 0
    return Bands(share.masked_fill(empty, torch.nan), noise.masked_fill(empty, torch.nan))
