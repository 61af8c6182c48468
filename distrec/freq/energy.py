"""Where the energy of a sequence of states lies: over the frequencies of a graph between its places, or of time.

Whoever reads a share should see beside it what white
noise has, and what a state that never changes has: on a complete graph nearly all of it counts as low.

Shapes: B sequences, T places, D channels, b bands.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

QUARTER = 0.25  # of the frequencies, that count as low


_EQUAL = 1e-9  # frequencies so near are one


class Basis(NamedTuple):
    """Eigenvectors in columns, and their frequencies, low to high."""

    vectors: Float[Tensor, "*B T T"]
    frequency: Float[Tensor, "*B T"]


def power(states: Float[Tensor, "*B T D"], basis: Basis, unit: bool = True) -> Float[Tensor, "*B T"]:
    """The share of the energy at each frequency; sums to 1.

    Eigenvectors of one frequency share its energy equally: which of them a routine returns is an accident.
    `unit`: divide each state by its length first: the first token of a language model would else outweigh all others.
    """
    x = states.double()
    if unit:
        x = x / x.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    energy = _levelled((basis.vectors.mT @ x).square().sum(-1), basis.frequency)
    return energy / energy.sum(-1, keepdim=True).clamp(min=1e-300)


def _levelled(energy: Float[Tensor, "*B T"], frequency: Float[Tensor, "*#B T"]) -> Float[Tensor, "*B T"]:
    """The mean over equal frequencies in place of each."""
    group = F.pad((frequency.diff(dim=-1) > _EQUAL).long(), (1, 0)).cumsum(-1).expand(energy.shape)
    total = torch.zeros_like(energy).scatter_add_(-1, group, energy)
    count = torch.zeros_like(energy).scatter_add_(-1, group, torch.ones_like(energy))
    return (total / count.clamp(min=1)).gather(-1, group)


def lowest(power: Float[Tensor, "*B T"], share: float = QUARTER) -> Float[Tensor, "*B"]:
    """What the lowest ⌈share · T⌉ frequencies hold."""
    return power[..., : math.ceil(share * power.shape[-1])].sum(-1)


class Bands(NamedTuple):
    """Shares of energy by band of frequency, low to high, and what white noise would have; NaN where a band is empty."""

    share: Float[Tensor, "*B b"]
    noise: Float[Tensor, " b"]


def bands(power: Float[Tensor, "*B T"], n_bands: int) -> Bands:
    """Band k holds the frequencies T · k // b … T · (k + 1) // b − 1, as many as can be of equal size, some none where T < b.

    Raises: ValueError when there is no band.
    """
    if n_bands < 1:
        raise ValueError(f"{n_bands} bands: at least 1")
    n = power.shape[-1]
    band = ((torch.arange(n, device=power.device) + 1) * n_bands - 1).div(n, rounding_mode="floor")
    count = torch.bincount(band, minlength=n_bands).double()
    share = power.new_zeros((*power.shape[:-1], n_bands)).index_add_(-1, band, power)
    empty = count == 0
    return Bands(share.masked_fill(empty, torch.nan), (count / n).masked_fill(empty, torch.nan))


def cosines(n: int) -> Basis:
    """The frequencies of n places in time, mirrored at both ends (DCT-II); the first is constant."""
    place, k = torch.arange(n, dtype=torch.float64)[:, None] + 0.5, torch.arange(n, dtype=torch.float64)
    scale = torch.where(k > 0, math.sqrt(2 / n), math.sqrt(1 / n))
    return Basis(scale * torch.cos(math.pi * place * k / n), k / n)


def eigenvectors(weights: Float[Tensor, "*B T T"]) -> Basis:
    """The frequencies of the normalised Laplacian of symmetric weights; a place without an edge has frequency 0.

    The lowest is D^½ 1, where the graph is connected, not a constant.
    """
    weights = weights.double()
    degree = weights.sum(-1)
    scale = torch.where(degree > 0, degree.clamp(min=1e-300).rsqrt(), 0)
    laplacian = torch.diag_embed((degree > 0).double()) - scale[..., :, None] * weights * scale[..., None, :]
    frequency, vectors = torch.linalg.eigh(laplacian)
    return Basis(vectors, frequency)
