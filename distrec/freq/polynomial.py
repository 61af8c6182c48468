"""Filters on a graph of items: polynomials of its normalised Laplacian, at the cost of a product with A each degree.

A = D^-½ W D^-½, L = I − A (freq/graph.py).

Shapes: I items, D channels.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.polynomial.chebyshev import chebfit, chebpts1
from scipy.sparse import csr_array
from torch import Tensor


def low_pass(A: csr_array, x: Float[Tensor, "I D"], alpha: float, order: int = 1) -> Float[Tensor, "I D"]:
    """(I − α L)^order x, computed in fp32: h(λ) = (1 − α λ)^order.   Source: FreLLM4Rec (order 1, α .7).

    Raises: ValueError when alpha lies outside [0, 1] or order is below 1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} lies outside [0, 1]: 0 leaves x as it is, 1 is A x")
    if order < 1:
        raise ValueError(f"order={order} is below 1: for no filter set alpha=0")
    A_ = Adjacency(A, x)
    y = x.float()
    for _ in range(order):
        y = A_.add(y, y, 1 - alpha, alpha).index_copy_(0, A_.alone, y[A_.alone])
    return y.to(x.dtype)


def polynomial(A: csr_array, x: Float[Tensor, "I D"], coefficients: Sequence[float]) -> Float[Tensor, "I D"]:
    """Σ_k c_k Lᵏ x by Horner's rule, in fp32: h(λ) = Σ_k c_k λᵏ.  Above order 10 or so `chebyshev` is more exact.

    Raises: ValueError when there is no coefficient.
    """
    *lower, highest = _some(coefficients)
    A_, x32 = Adjacency(A, x), x.float()
    y = highest * x32
    for c in reversed(lower):
        y = A_.add(y + c * x32, y, 1, -1)
    return y.to(x.dtype)


def chebyshev(A: csr_array, x: Float[Tensor, "I D"], coefficients: Sequence[float]) -> Float[Tensor, "I D"]:
    """Σ_k c_k T_k(L − I) x in fp32: h(λ) = Σ_k c_k T_k(λ − 1).   Raises: ValueError when there is no coefficient."""
    first, *others = _some(coefficients)
    terms = chebyshev_terms(A, x)
    y = first * next(terms)
    for c, term in zip(others, terms, strict=False):
        y = y + c * term
    return y.to(x.dtype)


def chebyshev_terms(A: csr_array, x: Float[Tensor, "I D"], top: float = 2.0) -> Iterator[Float[Tensor, "I D"]]:
    """T_0(B) x, T_1(B) x, … with B = 2L / top − I, without end, by T_k = 2 B T_k−1 − T_k−2, in fp32."""
    A_, before, scale = Adjacency(A, x), x.float(), 2 / top
    yield before
    last = A_.add(before, before, scale - 1, -scale)
    while True:
        yield last
        before, last = last, A_.add(2 * (scale - 1) * last - before, last, 1, -2 * scale)


def chebyshev_coefficients(response: Callable[[np.ndarray], np.ndarray], order: int) -> list[float]:
    """c_0 … c_order with Σ_k c_k T_k(λ − 1) = response(λ) at the Chebyshev points of [0, 2], where L's spectrum lies."""
    if order < 0:
        raise ValueError(f"order={order} is below 0: 0 is a constant response")
    points = chebpts1(order + 1)
    return chebfit(points, response(points + 1), order).tolist()


def rayleigh(A: csr_array, x: Float[Tensor, "I D"]) -> Float[Tensor, " D"]:
    """xᵀL x / xᵀx of each channel: its mean frequency, 0 (smooth) to 2; 0 for a channel of zeros."""
    x = x.float()
    high = (x * Adjacency(A, x).add(x, x, 1, -1)).sum(0, dtype=torch.float64)
    return (high / x.double().square().sum(0).clamp(min=torch.finfo(torch.float64).tiny)).float()


class Adjacency:
    """A with a self-loop of 1 at each item that has no edge, beside x: I minus this is L, also there."""

    def __init__(self, A: csr_array, x: Tensor):
        if A.shape != (len(x), len(x)):
            raise ValueError(f"a graph of shape {A.shape} cannot filter {len(x)} items: both must be of one catalogue")
        parts = (torch.from_numpy(part).to(x.device) for part in (A.indptr, A.indices, A.data))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            self.matrix = torch.sparse_csr_tensor(*parts, size=A.shape, dtype=torch.float32, check_invariants=False)
        self.alone = torch.from_numpy(np.flatnonzero(np.diff(A.indptr) == 0)).to(x.device)

    def add(self, base: Tensor, y: Tensor, beta: float, alpha: float) -> Tensor:
        """beta base + alpha A y."""
        with torch.autocast(y.device.type, enabled=False):
            total = torch.addmm(base, self.matrix, y, beta=beta, alpha=alpha)
        return total.index_add_(0, self.alone, y[self.alone], alpha=alpha)


def _some(coefficients: Sequence[float]) -> Sequence[float]:
    if not len(coefficients):
        raise ValueError("no coefficients: a filter needs one at least, [1] is the identity")
    return coefficients
