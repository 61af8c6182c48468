"""Butterworth low-pass along time, as one matrix a batch row: y = M x, each sequence over its own places alone.

    H(f) = 1 / sqrt(1 + (f / cutoff)^(2 · order)),   f in [0, 1], 1 = Nyquist;   H(cutoff) = 1 / sqrt 2

    reflect   zero phase, the sequence mirrored at both ends (DCT-II):  M = c(t − s) + c(t + s + 1)
    circular  zero phase, the sequence joined to a ring (DFT):          M = g(t − s mod n)
    paper     circular, on the published grid: f = k / (F − 1), F = n // 2 + 1, the cutoff rounded down to it
    causal    one-sided impulse response, each row divided by its sum:  M = h(t − s), s ≤ t

A matrix needs T² D products and no FFT, is exact for every length in a batch, and takes any padding or packing; in
windows of some hundred places that is a small part of one layer's work.

Shapes: B rows of a batch, T positions, D channels, n places of a sequence, F bins, U distinct lengths, W lags.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Boundary = Literal["reflect", "circular", "paper", "causal"]
_GRID = 2048  # frequencies of the integral behind the causal response
_EVERY = 256  # places up to which a GPU makes the responses of every length


def gain(f: Float[Tensor, "*F"], cutoff: Float[Tensor, "*#F"], order: int) -> Float[Tensor, "*F"]:
    """H(f).   Source: FreLLM4Rec's code (magnitude form: −3 dB at the cutoff).

    Raises: ValueError when the order is below 1.
    """
    if order < 1:
        raise ValueError(f"order {order}: a Butterworth filter has an order of at least 1")
    return (1 + (f / cutoff) ** (2 * order)).rsqrt()


def matrices(
    segment: Int[Tensor, "B T"], cutoff: Float[Tensor, ""] | float, order: int, boundary: Boundary
) -> Float[Tensor, "B T T"]:
    """M for each row; `segment` numbers the sequence that a place belongs to, 0 for padding, which stays as it is.

    Differentiable in the cutoff (not on the paper's grid).   Causal: with `causal`, M[t, s] = 0 for s > t.
    In float32, whatever autocast says; the host does not wait for the device (`_lengths`).

    Raises: ValueError when a cutoff that is a number is outside (0, 1], or the order below 1.   A cutoff that is a tensor
    is not read: it is within (0, 1] by its construction.
    """
    cutoff = _on(segment.device, cutoff)
    here = segment > 0
    same = (segment[:, :, None] == segment[:, None]) & here[:, :, None]
    n = same.sum(2)
    place = same.tril(-1).sum(2)
    lag = place[:, :, None] - place[:, None]
    if boundary == "causal":
        weight = impulse(segment.shape[1], cutoff, order)[lag.abs()] * (same & (lag >= 0))
        found = weight / weight.sum(2, keepdim=True).masked_fill(~here[..., None], 1)
    else:
        lengths, which, most = _lengths(n)
        table = _responses(lengths, most, 2 * segment.shape[1], cutoff, order, boundary)
        row = which[:, :, None]
        if boundary == "reflect":
            found = table[row, lag.abs()] + table[row, place[:, :, None] + place[:, None] + 1]
        else:
            found = table[row, lag % n.clamp(min=1)[:, :, None]]
        found = found * same
    return found + torch.diag_embed((~here).float())


def _lengths(n: Int[Tensor, "B T"]) -> tuple[Int[Tensor, " U"], Int[Tensor, "B T"], int]:
    """(the lengths that responses are made for, which of them each place has, the longest).

    On a GPU every length up to T, although few occur: which do only the device knows, and the host would wait for it.
    Past 256 places that takes more memory than it is worth (8 T³ bytes), and the host does wait.
    """
    most = n.shape[1]
    if n.is_cuda and most <= _EVERY:
        return torch.arange(most + 1, device=n.device).clamp(min=1), n, most
    lengths, which = n.unique(return_inverse=True)
    lengths = lengths.clamp(min=1)
    return lengths, which, int(lengths.max())


def _on(device: torch.device, cutoff: Tensor | float) -> Float[Tensor, ""]:
    if isinstance(cutoff, Tensor):
        return cutoff.to(device, torch.float32)
    if not 0 < cutoff <= 1:
        raise ValueError(f"cutoff {cutoff:g}: a share of the Nyquist frequency, above 0 and at most 1")
    # filled in there: for a copy of a number the host would wait
    return torch.full((), cutoff, dtype=torch.float32, device=device)


def impulse(n: int, cutoff: Float[Tensor, ""], order: int) -> Float[Tensor, " n"]:
    """h(l) = ∫ H(f) cos(π f l) df over [0, 1] for l = 0 … n − 1: the zero-phase response of an endless sequence."""
    f = (torch.arange(_GRID, device=cutoff.device) + 0.5) / _GRID
    turns = torch.cos(math.pi * torch.arange(n, device=cutoff.device)[:, None] * f)
    with torch.autocast(cutoff.device.type, enabled=False):
        return turns @ gain(f, cutoff, order) / _GRID


class Streamed:
    """The causal filter one place at a time, for sequences that grow; equal to the batch.

    Keeps what it was given: as much memory as the keys of a cache.
    """

    def __init__(self, cutoff: float, order: int, beta: float = 1.0):
        self._cutoff, self._order, self._beta = cutoff, order, beta
        self._past: list[Tensor] = []

    def step(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        self._past.append(x)
        weight = impulse(len(self._past), _on(x.device, self._cutoff), self._order).flip(0).to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            found = torch.einsum("t,tbd->bd", weight / weight.sum(), torch.stack(self._past))
        return (1 - self._beta) * x + self._beta * found


def _responses(
    n: Int[Tensor, " U"], most: int, width: int, cutoff: Tensor, order: int, boundary: Boundary
) -> Float[Tensor, "U W"]:
    """c(l) or g(l) of sequences of n ≤ `most` places, l = 0 … width − 1; beyond a sequence's own lags the numbers mean nothing."""
    k = torch.arange(most, device=n.device)
    mirrored = boundary == "reflect"
    bins = n if mirrored else n // 2 + 1
    f = k * (1 / n if mirrored else 2 / n)[:, None]
    if boundary == "paper":
        last = (bins - 1).clamp(min=1)[:, None]
        edge = (bins * cutoff.clamp(min=0.1)).floor()[:, None] / last
        passed = torch.where(edge > 0, gain(k / last, edge.clamp(min=1e-9), order), (k == 0).float())
    else:
        passed = gain(f, cutoff, order)
    # on a ring a bin stands for its mirror image too, but the first, and the last of an even one
    alone = (k == 0) | ((2 * k == n[:, None]) & (not mirrored))
    share = torch.where(alone, 0.5, 1.0) * (1 if mirrored else 2) * (k < bins[:, None]) / n[:, None]
    turns = torch.cos(math.pi * f[:, :, None] * torch.arange(width, device=n.device))
    return ((passed * share)[:, :, None] * turns).sum(1)
