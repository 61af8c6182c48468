"""Filters along time: a Gaussian in the time domain (AGF).

Shapes: B users in a batch, T positions, D channels, k taps.
"""

import math

import torch
import torch.nn.functional as F
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
    taps = kernel.view(1, 1, -1, 1)
    valid = is_valid[:, None, :, None].to(x)
    padding = (len(kernel) // 2, 0)
    filtered = F.conv2d(x[:, None] * valid, taps.to(x), padding=padding)
    if normalised:
        weight = F.conv2d(valid, taps.to(x), padding=padding)
        filtered = filtered / weight.clamp(min=torch.finfo(x.dtype).tiny)
    return (filtered * valid)[:, 0]
