"""The four covariance types as exponential families: log N(x | μ, Σ) = F(x) · W + c,  F(x) = [x, rest(x)].

F are a row's sufficient statistics, so one product F · Wᵀ gives the log-densities of all components, and one
product responsibilityᵀ · F all that the M-step needs.

Shapes: n rows of a block, D dimensions, K components, S statistics.
"""

import math
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Kind = Literal["diag", "spherical", "tied", "full"]
Natural = tuple[Float[Tensor, "K S"], Float[Tensor, " K"]]


@runtime_checkable
class Covariance(Protocol):
    """What a Gaussian mixture needs to know about its covariances, all of it float64."""

    needs_double: bool  # its log-densities cancel too much for float32
    needs_scatter: bool  # its estimate takes Σ x xᵀ over all rows
    is_own: bool  # each component has its own

    def statistics(self, d: int) -> int:
        """How many of F's columns the M-step takes; the first D are x itself."""
        ...

    def columns(self, d: int) -> int:
        """How many columns F has."""
        ...

    def limit(self, d: int, largest: float) -> float:
        """What no statistic beyond the first D exceeds while no |x| exceeds `largest`."""
        ...

    def extreme(self, d: int, largest: float, covariances: Tensor) -> Float[Tensor, " S"]:
        """What no |F| exceeds while no |x| exceeds `largest`."""
        ...

    def frame(self, covariances: Tensor) -> Tensor:
        """Return what `rest` needs of the present covariances, worked out once for all blocks: themselves, or a factor."""
        ...

    def rest(self, x: Float[Tensor, "n D"], frame: Tensor, out: Float[Tensor, "n R"]) -> Float[Tensor, "n R"]:
        """Write the columns of F(x) after the first D into `out`."""
        ...

    def natural(self, means: Float[Tensor, "K D"], frame: Tensor) -> Natural:
        """(W, c)."""
        ...

    def estimate(
        self, counts: Float[Tensor, " K"], sums: Float[Tensor, "K S"], scatter: Tensor, floor: float
    ) -> tuple[Float[Tensor, "K D"], Tensor]:
        """(means, covariances) from Σ r and Σ r F; `floor` is added to every variance."""
        ...

    def average(self, weights: Float[Tensor, " K"], covariances: Tensor) -> Tensor:
        """The covariance of a component that starts anew."""
        ...


class Diag:
    """Σ_k = diag(σ²_k): K × D."""

    needs_double, needs_scatter, is_own = False, False, True

    def statistics(self, d: int) -> int:
        return 2 * d

    def columns(self, d: int) -> int:
        return self.statistics(d)

    def limit(self, d: int, largest: float) -> float:
        return largest**2

    def extreme(self, d: int, largest: float, covariances: Tensor) -> Tensor:
        return features(self, covariances.new_full((1, d), largest), covariances)[0]

    def frame(self, covariances: Tensor) -> Tensor:
        return covariances

    def rest(self, x: Tensor, frame: Tensor, out: Tensor) -> Tensor:
        return torch.square(x, out=out)

    def natural(self, means: Tensor, frame: Tensor) -> Natural:
        precision = frame.reciprocal()
        constant = -0.5 * (
            means.shape[1] * math.log(2 * math.pi) + frame.log().sum(1) + (means.square() * precision).sum(1)
        )
        return torch.cat([means * precision, -0.5 * precision], 1), constant

    def estimate(self, counts: Tensor, sums: Tensor, scatter: Tensor, floor: float) -> tuple[Tensor, Tensor]:
        means, squares = (sums / counts[:, None]).chunk(2, 1)
        return means, (squares - means.square()).clamp(min=0) + floor

    def average(self, weights: Tensor, covariances: Tensor) -> Tensor:
        return weights @ covariances


class Spherical:
    """Σ_k = σ²_k · 1: K."""

    needs_double, needs_scatter, is_own = False, False, True

    def statistics(self, d: int) -> int:
        return d + 1

    def columns(self, d: int) -> int:
        return self.statistics(d)

    def limit(self, d: int, largest: float) -> float:
        return d * largest**2

    def extreme(self, d: int, largest: float, covariances: Tensor) -> Tensor:
        return features(self, covariances.new_full((1, d), largest), covariances)[0]

    def frame(self, covariances: Tensor) -> Tensor:
        return covariances

    def rest(self, x: Tensor, frame: Tensor, out: Tensor) -> Tensor:
        return out.copy_(x.square().sum(1, keepdim=True))

    def natural(self, means: Tensor, frame: Tensor) -> Natural:
        precision = frame.reciprocal()[:, None]
        constant = -0.5 * (means.shape[1] * (2 * math.pi * frame).log() + (means.square() * precision).sum(1))
        return torch.cat([means * precision, -0.5 * precision], 1), constant

    def estimate(self, counts: Tensor, sums: Tensor, scatter: Tensor, floor: float) -> tuple[Tensor, Tensor]:
        scaled = sums / counts[:, None]
        means = scaled[:, :-1]
        return means, (scaled[:, -1] - means.square().sum(1)).clamp(min=0) / means.shape[1] + floor

    def average(self, weights: Tensor, covariances: Tensor) -> Tensor:
        return weights @ covariances


class Tied:
    """One Σ for all components: D × D.  What it says about a row alone, −½ xᵀ Σ⁻¹ x, is a statistic of its own."""

    needs_double, needs_scatter, is_own = True, True, False

    def statistics(self, d: int) -> int:
        return d

    def columns(self, d: int) -> int:
        return d + 1

    def limit(self, d: int, largest: float) -> float:
        return 0.0

    def extreme(self, d: int, largest: float, covariances: Tensor) -> Tensor:
        least = torch.linalg.eigvalsh(covariances)[:1].clamp(min=1e-300)
        return torch.cat([covariances.new_full((d,), largest), 0.5 * d * largest**2 / least])

    def frame(self, covariances: Tensor) -> Tensor:
        return cholesky(covariances)

    def rest(self, x: Tensor, frame: Tensor, out: Tensor) -> Tensor:
        white = torch.linalg.solve_triangular(frame, x.T, upper=False)
        return out.copy_(-0.5 * white.square().sum(0)[:, None])

    def natural(self, means: Tensor, frame: Tensor) -> Natural:
        pulled = torch.cholesky_solve(means.T, frame).T
        constant = -0.5 * (means.shape[1] * math.log(2 * math.pi) + (means * pulled).sum(1))
        return torch.cat([pulled, torch.ones_like(pulled[:, :1])], 1), constant - frame.diagonal().log().sum()

    def estimate(self, counts: Tensor, sums: Tensor, scatter: Tensor, floor: float) -> tuple[Tensor, Tensor]:
        means = sums / counts[:, None]
        within = (scatter - (means * counts[:, None]).T @ means) / counts.sum()
        return means, within + floor * torch.eye(means.shape[1], dtype=means.dtype, device=means.device)

    def average(self, weights: Tensor, covariances: Tensor) -> Tensor:
        return covariances


class Full:
    """Σ_k: K × D × D.  x xᵀ enters by its upper triangle."""

    needs_double, needs_scatter, is_own = True, False, True

    def statistics(self, d: int) -> int:
        return d + d * (d + 1) // 2

    def columns(self, d: int) -> int:
        return self.statistics(d)

    def limit(self, d: int, largest: float) -> float:
        return largest**2

    def extreme(self, d: int, largest: float, covariances: Tensor) -> Tensor:
        return features(self, covariances.new_full((1, d), largest), covariances)[0]

    def frame(self, covariances: Tensor) -> Tensor:
        return covariances

    def rest(self, x: Tensor, frame: Tensor, out: Tensor) -> Tensor:
        i, j = self._upper(x.shape[1], x.device)
        return torch.mul(x[:, i], x[:, j], out=out)

    def natural(self, means: Tensor, frame: Tensor) -> Natural:
        d = means.shape[1]
        factor = cholesky(frame)
        precision = torch.cholesky_inverse(factor)
        pulled = (precision @ means[:, :, None])[:, :, 0]
        i, j = self._upper(d, means.device)
        quadratic = -torch.where(i == j, 0.5, 1.0).to(means) * precision[:, i, j]
        log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        constant = -0.5 * (d * math.log(2 * math.pi) + log_det + (means * pulled).sum(1))
        return torch.cat([pulled, quadratic], 1), constant

    def estimate(self, counts: Tensor, sums: Tensor, scatter: Tensor, floor: float) -> tuple[Tensor, Tensor]:
        scaled = sums / counts[:, None]
        d = (math.isqrt(9 + 8 * scaled.shape[1]) - 3) // 2  # S = d + d (d + 1) / 2
        means = scaled[:, :d]
        i, j = self._upper(d, means.device)
        second = means.new_empty(len(means), d, d)
        second[:, i, j] = scaled[:, d:]
        second[:, j, i] = scaled[:, d:]
        covariances = second - means[:, :, None] * means[:, None]
        return means, covariances + floor * torch.eye(d, dtype=means.dtype, device=means.device)

    def average(self, weights: Tensor, covariances: Tensor) -> Tensor:
        return torch.einsum("k,kij->ij", weights, covariances)

    @staticmethod
    def _upper(d: int, device: torch.device) -> tuple[Tensor, Tensor]:
        i, j = torch.triu_indices(d, d, device=device)
        return i, j


KINDS: dict[Kind, Covariance] = {"diag": Diag(), "spherical": Spherical(), "tied": Tied(), "full": Full()}


def features(
    kind: Covariance, x: Float[Tensor, "n D"], frame: Tensor, out: Tensor | None = None
) -> Float[Tensor, "n S"]:
    """Return F(x), in `out` where there is one."""
    d = x.shape[1]
    out = x.new_empty(len(x), kind.columns(d)) if out is None else out
    out[:, :d] = x
    kind.rest(x, frame, out[:, d:])
    return out


def cholesky(covariances: Float[Tensor, "*K D D"]) -> Float[Tensor, "*K D D"]:
    """Lower factors; a matrix that rounding left without one first has its eigenvalues lifted to 1e-10 of the largest."""
    factor, failed = torch.linalg.cholesky_ex(covariances)
    if failed.any():
        values, vectors = torch.linalg.eigh(covariances)
        lifted = values.clamp(min=values.amax(-1, keepdim=True).clamp(min=1e-300) * 1e-10)
        repaired = torch.linalg.cholesky((vectors * lifted[..., None, :]) @ vectors.mT)
        factor = torch.where(failed[..., None, None] > 0, repaired, factor)
    return factor
