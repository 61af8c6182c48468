"""How the energy of items' vectors lies over the frequencies of a graph of any size.

    μ_x(λ) = Σ_{λ_i ≤ λ} ⟨u_i, x⟩² / ⟨x, x⟩,   u_i, λ_i of L = I − A

Small graphs: every eigenvector.  Large ones: Gauss quadrature by Lanczos, one run a channel, all channels at once; a few
products with A, and no more memory than four tables of a chunk of channels.

Shapes: I items, D channels, m nodes, P probes, b bands.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.polynomial.chebyshev import chebval
from scipy.optimize import root_scalar
from scipy.sparse import csr_array
from torch import Tensor

from distrec.freq.polynomial import Adjacency, chebyshev_terms

DENSE = 2048  # items up to which eigenvectors are worked out
ORDER = 200  # of the polynomial that keeps a share of the frequencies
EQUAL = 1e-5  # frequencies so near are one
_CHUNK = 32  # channels at once
_TOGETHER = 4  # shares for which one row of products with A is worked out
_PROBES = 32  # of white noise


class Edges(NamedTuple):
    """Frequencies, and the share of what lies at just this one that counts as below: many items may have it in common."""

    frequency: Float[np.ndarray, " b"]
    inside: Float[np.ndarray, " b"]


class Measure(NamedTuple):
    """Energy (summed over channels, 1 in all) at frequencies, low to high; `is_exact`: those of the graph itself."""

    frequency: Float[np.ndarray, " m"]
    energy: Float[np.ndarray, " m"]
    is_exact: bool

    def below(self, edges: Edges) -> Float[np.ndarray, " b"]:
        """The share of the energy below each of some edges."""
        low, high = self._around(edges.frequency)
        return low + edges.inside * (high - low)

    def quantiles(self, shares: Float[np.ndarray, " b"]) -> Edges:
        """The edges below which these shares of the energy lie."""
        places = np.searchsorted(self.energy.cumsum() + 1e-12, shares, side="right")
        frequency = self.frequency[places.clip(max=len(self.frequency) - 1)]
        low, high = self._around(frequency)
        return Edges(frequency, ((shares - low) / np.maximum(high - low, 1e-300)).clip(0, 1))

    def _around(self, frequency: Float[np.ndarray, " b"]) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"]]:
        """The energy below these frequencies, without and with what lies at them."""
        total = np.r_[0, self.energy.cumsum()]
        return (
            total[np.searchsorted(self.frequency, frequency - EQUAL, side="left")],
            total[np.searchsorted(self.frequency, frequency + EQUAL, side="right")],
        )


class Frequencies:
    """Those of L = I − A.   `is_exact`: each is known with its eigenvector (small graphs); else they are told by Lanczos.

    `steps`: of Lanczos, products with A for each chunk of channels.   Raises: ValueError when steps is below 2.
    """

    def __init__(self, A: csr_array, steps: int = 60, seed: int = 0):
        if steps < 2:
            raise ValueError(f"steps={steps}: at least 2")
        self.A, self.n, self.steps, self.seed = A, len(A.indptr) - 1, steps, seed
        self._basis = dense(A) if self.n <= DENSE else None
        self.is_exact = self._basis is not None

    def measure(self, x: Float[Tensor, "I D"]) -> Measure:
        """The energy of the channels of x by frequency.

        Raises: ValueError when the graph is of another catalogue, or x is zero or not finite.
        """
        self._check(x)
        if not bool(x.isfinite().all()) or not bool(x.any()):
            raise ValueError("the vectors are zero or not finite: they have no energy to measure")
        if self._basis is None:
            return lanczos(self.A, x, self.steps)
        frequency, vectors = self._basis
        energy = np.square(vectors.T @ x.double().numpy(force=True)).sum(1)
        return Measure(frequency, energy / energy.sum(), True)

    @cached_property
    def noise(self) -> Measure:
        """What white noise has: the density of the graph's frequencies."""
        if self._basis is not None:
            return Measure(self._basis[0], np.full(self.n, 1 / self.n), True)
        generator = torch.Generator().manual_seed(self.seed)
        return lanczos(self.A, torch.randn(self.n, _PROBES, generator=generator), self.steps)

    def lowest(self, x: Float[Tensor, "I D"], shares: Sequence[float]) -> Iterator[Float[Tensor, "I D"]]:
        """x on about these shares of the frequencies, from the lowest up; `response` tells what is kept.

        On small graphs a frequency is kept with all that have it, or not at all; on large ones a polynomial of degree ORDER,
        whose edge is soft, leaves white noise this share.
        Raises: ValueError when the graph is of another catalogue.
        """
        self._check(x)
        for low in range(0, len(shares), _TOGETHER):
            yield from self._lowest(x, [self._edge(share) for share in shares[low : low + _TOGETHER]])

    def response(self, share: float) -> Float[np.ndarray, " m"]:
        """What `lowest` leaves of each of `noise`'s frequencies: a factor."""
        edge = self._edge(share)
        return (self.noise.frequency < edge).astype(float) if self.is_exact or np.isinf(edge) else self._soft(edge)

    def _excess(self, edge: float, share: float) -> float:
        return float(self.noise.energy @ self._soft(edge) ** 2) - share

    def _soft(self, edge: float) -> Float[np.ndarray, " m"]:
        return chebval(2 * self.noise.frequency / self._top - 1, _step(edge, self._top))

    def _edge(self, share: float) -> float:
        """The gap between frequencies that is nearest to where this share of white noise lies below; of a polynomial, the edge."""
        if not 0 < share < 1:
            return np.inf if share else -np.inf
        if not self.is_exact:
            return root_scalar(self._excess, (share,), bracket=(0, self._top)).root
        known = self.noise.frequency
        gaps = np.flatnonzero(np.r_[np.diff(known) > EQUAL, True])
        last = gaps[np.abs(self.noise.energy.cumsum()[gaps] - share).argmin()]
        return float(known[last : last + 2].mean()) if last < len(known) - 1 else np.inf

    @cached_property
    def _top(self) -> float:
        """No frequency lies above it; Lanczos finds the highest from below."""
        return min(2.0, 1.01 * float(self.noise.frequency.max()))

    def _lowest(self, x: Tensor, edges: Sequence[float]) -> list[Tensor]:
        found = [x.float() if edge == np.inf else torch.zeros_like(x, dtype=torch.float32) for edge in edges]
        inside = [(y, edge) for y, edge in zip(found, edges, strict=True) if np.isfinite(edge)]
        if self._basis is not None:
            frequency, vectors = self._basis
            for y, edge in inside:
                basis = torch.from_numpy(vectors[:, frequency < edge])
                y.copy_(basis @ (basis.mT @ x.double()))
            return found
        steps = [_step(edge, self._top) for _, edge in inside]
        for weights, term in zip(np.transpose(steps), chebyshev_terms(self.A, x, self._top), strict=False):
            for (y, _), weight in zip(inside, weights, strict=True):
                y.add_(term, alpha=float(weight))
        return found

    def _check(self, x: Tensor) -> None:
        if self.n != len(x):
            raise ValueError(f"a graph of {self.n} items cannot measure {len(x)}: both must be of one catalogue")


def _step(edge: float, top: float) -> Float[np.ndarray, " c"]:
    """Chebyshev's coefficients of 1 up to the edge and 0 above, with Jackson's factors: the polynomial does not swing beside it."""
    k, angle = np.arange(ORDER + 1), np.pi / (ORDER + 2)
    at = np.arccos(np.clip(2 * edge / top - 1, -1, 1))
    found = np.r_[1 - at / np.pi, -2 * np.sin(k[1:] * at) / (np.pi * k[1:])]
    return found * ((ORDER + 2 - k) * np.cos(k * angle) + np.sin(k * angle) / np.tan(angle)) / (ORDER + 2)


def lanczos(A: csr_array, x: Float[Tensor, "I D"], steps: int) -> Measure:
    """By Gauss quadrature.   Without orthogonalisation: a node that comes twice shares its weight between both.

    Source: Golub & Meurant 1994; Ubaru, Chen & Saad 2017.
    """
    matrix = Adjacency(A, x)
    found = [_quadrature(matrix, x[:, low : low + _CHUNK].float(), steps) for low in range(0, x.shape[1], _CHUNK)]
    frequency, energy = (np.concatenate([part[i] for part in found]) for i in (0, 1))
    order = np.argsort(frequency)
    return Measure(frequency[order], energy[order] / energy.sum(), False)


def _quadrature(matrix: Adjacency, x: Tensor, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(nodes, weights) of all channels, the weights of each summing to its energy."""
    size = x.norm(dim=0, dtype=torch.float64)
    now = (x / size.clamp(min=1e-30)).float()
    before = torch.zeros_like(now)
    beta = torch.zeros_like(size)
    diagonal, beside = [], []
    for _ in range(steps):
        following = matrix.add(now, now, 1, -1)  # L now
        alpha = (following * now).sum(0, dtype=torch.float64)
        following = following - alpha.float() * now - beta.float() * before
        beta = following.norm(dim=0, dtype=torch.float64)
        beta = torch.where(beta > 1e-6, beta, 0)  # what the channel touches is exhausted
        diagonal.append(alpha)
        beside.append(beta)
        before, now = now, torch.where(beta > 0, following / beta.clamp(min=1e-30).float(), 0)
    inner = torch.stack(beside[:-1], 1)
    nodes, vectors = torch.linalg.eigh(
        torch.diag_embed(torch.stack(diagonal, 1)) + torch.diag_embed(inner, 1) + torch.diag_embed(inner, -1)
    )
    return nodes.flatten().numpy(force=True), (vectors[:, 0].square() * size.square()[:, None]).flatten().numpy(
        force=True
    )


def dense(A: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """(frequencies, low to high; their eigenvectors in columns) of L."""
    alone = np.diff(A.indptr) == 0
    return np.linalg.eigh(np.eye(len(alone)) - A.toarray() - np.diag(alone.astype(float)))
