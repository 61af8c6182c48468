"""How the energy of items' vectors lies over the frequencies of a graph of any size.

    μ_x(λ) = Σ_{λ_i ≤ λ} ⟨u_i, x⟩² / ⟨x, x⟩,   u_i, λ_i of L = I − A

Small graphs: every eigenvector.  Large ones: Gauss quadrature by Lanczos, one run a channel, all channels at once; a few
products with A, and no more memory than four tables of a chunk of channels.

Shapes: I items, D channels, m nodes, P probes, b bands.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array
from torch import Tensor

from distrec.freq.graph import Adjacency

DENSE = 2048  # items up to which eigenvectors are worked out
_CHUNK = 32  # channels at once
_PROBES = 32  # of white noise


class Measure(NamedTuple):
    """Energy (summed over channels, 1 in all) at frequencies; `is_exact`: those of the graph itself."""

    frequency: Float[np.ndarray, " m"]
    energy: Float[np.ndarray, " m"]
    is_exact: bool

    def below(self, edges: Float[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
        """The share of the energy below each of some frequencies."""
        order = np.argsort(self.frequency, kind="stable")
        total = np.r_[0, self.energy[order].cumsum()]
        return total[np.searchsorted(self.frequency[order], edges, side="left")]

    def quantiles(self, shares: Float[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
        """The frequencies below which these shares of the energy lie."""
        order = np.argsort(self.frequency, kind="stable")
        total = self.energy[order].cumsum()
        return self.frequency[order][
            np.searchsorted(total / total[-1] + 1e-12, shares, side="right").clip(max=len(order) - 1)
        ]


def measure(A: csr_array, x: Float[Tensor, "I D"], steps: int = 60) -> Measure:
    """The energy of the channels of x by frequency.   `steps`: of Lanczos, products with A for each chunk of channels.

    Raises: ValueError when the graph is of another catalogue, steps is below 2, or x is zero or not finite.
    """
    if A.shape != (len(x), len(x)):
        raise ValueError(f"a graph of shape {A.shape} cannot measure {len(x)} items: both must be of one catalogue")
    if steps < 2:
        raise ValueError(f"steps={steps}: at least 2")
    if not bool(x.isfinite().all()) or not bool(x.any()):
        raise ValueError("the vectors are zero or not finite: they have no energy to measure")
    return _exact(A, x) if len(x) <= DENSE else lanczos(A, x, steps)


def noise(A: csr_array, steps: int = 60, seed: int = 0) -> Measure:
    """What white noise has: the density of the graph's frequencies."""
    n = len(A.indptr) - 1
    if n <= DENSE:
        frequency = dense(A)[0]
        return Measure(frequency, np.full(n, 1 / n), True)
    generator = torch.Generator().manual_seed(seed)
    return lanczos(A, torch.randn(n, _PROBES, generator=generator), steps)


def lanczos(A: csr_array, x: Float[Tensor, "I D"], steps: int) -> Measure:
    """By Gauss quadrature.   Without orthogonalisation: a node that comes twice shares its weight between both.

    Source: Golub & Meurant 1994; Ubaru, Chen & Saad 2017.
    """
    matrix = Adjacency(A, x)
    found = [_quadrature(matrix, x[:, low : low + _CHUNK].float(), steps) for low in range(0, x.shape[1], _CHUNK)]
    frequency, energy = (np.concatenate([part[i] for part in found]) for i in (0, 1))
    return Measure(frequency, energy / energy.sum(), False)


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


def _exact(A: csr_array, x: Tensor) -> Measure:
    frequency, vectors = dense(A)
    energy = np.square(vectors.T @ x.double().numpy(force=True)).sum(1)
    return Measure(frequency, energy / energy.sum(), True)


def dense(A: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """(frequencies, low to high; their eigenvectors in columns) of L."""
    alone = np.diff(A.indptr) == 0
    return np.linalg.eigh(np.eye(len(alone)) - A.toarray() - np.diag(alone.astype(float)))
