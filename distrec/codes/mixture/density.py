"""The E-step of a Gaussian mixture: log-densities of blocks of rows, and the sums that the M-step needs.

Shapes: n rows of a block, K components, D dimensions, S statistics.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distrec.codes.mixture.covariance import Covariance
from distrec.codes.mixture.precision import ROUNDING, Precision, product
from distrec.codes.rows import Rows, Spread, sum_by

_NEGLIGIBLE = -36.7  # log 2⁻⁵³: a responsibility that float64 could not add to 1
_CANCELLATION = 1.7e4  # log-densities whose terms exceed this are off by 1e-3 nat in float32
_PIECE = 2**24  # statistics worked on at once


class Parameters(NamedTuple):
    weights: Float[Tensor, " K"]
    means: Float[Tensor, "K D"]
    covariances: Tensor


class Piece(NamedTuple):
    """Some rows of a block, ready for the E-step."""

    x: Float[Tensor, "n D"]
    features: Float[Tensor, "n S"]  # the next piece overwrites them and the scores
    scores: Float[Tensor, "n K"]  # log π_k N(x | μ_k, Σ_k)


Scorer = Callable[[Tensor], Iterator[Piece]]  # a block of rows → its pieces


class Room:
    """Buffers for one piece of a block after the other, which one scorer at a time uses.

    Fresh memory costs a third of the product's time, and scatters what lives longer over the heap.
    """

    def __init__(self, kind: Covariance, rows: Rows, k: int):
        n = max(1, min(rows.block, _PIECE // kind.columns(rows.width)))
        dtype = torch.float64 if kind.needs_double else rows.dtype
        self._features = torch.empty(n, kind.columns(rows.width), dtype=dtype, device=rows.device)
        self._scores = torch.empty(n, k, dtype=dtype, device=rows.device)

    def pieces(self, x: Float[Tensor, "n D"]) -> Iterator[Piece]:
        """Pieces of a block, their features and scores yet to be filled in."""
        for piece in x.to(self._scores.dtype).split(len(self._scores)):
            yield Piece(piece, self._features[: len(piece)], self._scores[: len(piece)])


class Density:
    """Yields log π_k N(x | μ_k, Σ_k) for pieces of a block of rows.

    Tight components, whose terms would cancel too much in float32, are worked out again in float64 for the rows
    they might matter to.
    """

    def __init__(
        self,
        kind: Covariance,
        parameters: Parameters,
        rows: Rows,
        about: Spread,
        precision: Precision,
        room: "Room | None" = None,
    ):
        self._kind = kind
        self._precision: Precision = precision
        self._covariances = parameters.covariances
        weight, constant = kind.natural(parameters.means, parameters.covariances)
        constant = constant + parameters.weights.log()
        dtype = torch.float64 if kind.needs_double else rows.dtype
        typical = (about.variance + about.mean.square()).sqrt()[None]
        size = weight.abs()
        terms = size @ kind.features(typical, self._covariances).abs()[0]
        extreme = kind.extreme(rows.width, about.bound, self._covariances)
        self.bound = float((size @ extreme + constant.abs()).max())  # of |log-density|
        is_tight = (terms > _CANCELLATION) & (dtype == torch.float32)
        self.tight = is_tight.nonzero()[:, 0]
        self._margin = (16 * ROUNDING[precision] * terms[self.tight] - _NEGLIGIBLE).to(dtype)
        self._exact = weight[self.tight], constant[self.tight]
        self._weight, self._constant = weight.to(dtype), constant.to(dtype)
        self._room = room or Room(kind, rows, len(weight))

    def __call__(self, x: Float[Tensor, "n D"]) -> Iterator[Piece]:
        for piece, features, scores in self._room.pieces(x):
            features = self._kind.features(piece, self._covariances, features)
            scores = product(features, self._weight, self._precision, scores).add_(self._constant)
            if len(self.tight):
                self._refine(piece, scores)
            yield Piece(piece, features, scores)

    def _refine(self, x: Float[Tensor, "n D"], scores: Float[Tensor, "n K"]) -> None:
        others = scores.index_fill(1, self.tight, -torch.inf).amax(1, keepdim=True)
        row, place = (scores[:, self.tight] > others - self._margin).nonzero().unbind(1)
        weight, constant = self._exact
        if len(row) > len(x):  # one product is cheaper than so many pairs
            double = self._kind.features(x.double(), self._covariances)
            scores[:, self.tight] = (double @ weight.T + constant).to(scores)
        else:
            double = self._kind.features(x[row].double(), self._covariances)
            scores[row, self.tight[place]] = ((double * weight[place]).sum(1) + constant[place]).to(scores)


def expect(
    piece: Piece, width: int, tight: Int[Tensor, " M"], exact: Callable[[Tensor], Tensor]
) -> tuple[Float[Tensor, ""], Float[Tensor, " K"], Float[Tensor, "K S"]]:
    """(Σ_n log p(x_n), Σ_n r_nk, Σ_n r_nk F(x_n)) of some rows, F's first `width` columns; overwrites the scores.

    In many dimensions nearly every responsibility is negligible, so the sums touch only the others.  Those of
    tight components are taken over exact(x), the float64 statistics.
    """
    x, features, scores = piece.x, piece.features[:, :width], piece.scores
    k = scores.shape[1]
    top = scores.amax(1)
    kept = scores.sub_(top[:, None]) > _NEGLIGIBLE
    if scores.device.type == "cpu" and int(kept.sum()) <= kept.numel() // 8:
        code, row = kept.T.nonzero().unbind(1)
        weight = scores[row, code].exp()
        norm = torch.zeros_like(top).index_add_(0, row, weight)
        weight /= norm[row]
        count, part = torch.bincount(code, weight.double(), k), sum_by(code, row, weight, features, k)
        pairs = torch.isin(code, tight)
        code, row, weight = code[pairs], row[pairs], weight[pairs].double()
    else:
        share = scores.exp_()
        norm = share.sum(1)
        share /= norm[:, None]
        count, part = share.sum(0, dtype=torch.float64), share.T @ features
        place, row = (share[:, tight] > 0).T.nonzero().unbind(1)
        code = tight[place]
        weight = share[row, code].double()
    part = part.double()
    if len(row):
        terms = exact(x[row])
        order = torch.arange(len(row), device=row.device)
        part[tight] = sum_by(code, order, weight, terms, k)[tight]
    return (top.double() + norm.double().log()).sum(), count, part
