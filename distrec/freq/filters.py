"""Filters along time: a Gaussian in the time domain (AGF).

Shapes: B users in a batch, T positions, D channels, k taps.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def gaussian(sigma: Float[Tensor, ""], taps: int, literal: bool = False) -> Float[Tensor, " k"]:
    """exp(−t² / 2σ²) for t = −k//2 … k//2, times 1 / (√2π σ) when `literal`.   Source: TONE Eq. 7."""
    t = torch.arange(taps, device=sigma.device, dtype=sigma.dtype) - taps // 2
    kernel = torch.exp(-t.square() / (2 * sigma.square()))
    return kernel / (math.sqrt(2 * math.pi) * sigma) if literal else kernel


def smooth(
    x: Float[Tensor, "B T D"], is_valid: Bool[Tensor, "B T"], kernel: Float[Tensor, " k"], normalised: bool = True
) -> Float[Tensor, "B T D"]:
    """Σ_s kernel(t−s) x_s ÷ Σ_s kernel(t−s), over valid places s alone; zero at the others.

    `normalised`: the division; without it the paper's kernel takes away up to a quarter of the signal (Deviation).
    """
    n, middle = x.shape[1], len(kernel) // 2
    place = torch.arange(n, device=x.device)
    lag = place - place[:, None] + middle
    inside = (lag >= 0) & (lag < len(kernel))
    # a band matrix: one product is a tenth of a convolution's time in windows of some 80 places
    band = torch.where(inside, kernel[lag.clamp(0, len(kernel) - 1)], 0.0).to(x)
    valid = is_valid.to(x)
    with torch.autocast(x.device.type, enabled=False):
        filtered = band @ x.masked_fill(~is_valid[..., None], 0)
        if normalised:
            weight = valid @ band.T
            filtered = filtered / weight.clamp(min=torch.finfo(x.dtype).tiny)[..., None]
    return filtered * valid[..., None]
