"""The E-step of a Gaussian mixture: log-densities of blocks of rows, and the sums that the M-step needs.

F(x) = [x, rest(x)] is one matrix on a CPU, so that each step takes one product; a GPU takes two, of x as it is and of
rest(x), because it is short of memory bandwidth, and never waits for a number in between.

Shapes: n rows of a block, K components, D dimensions, S statistics, M tight components.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distrec.codes.mixture.covariance import Covariance, features
from distrec.codes.mixture.precision import ROUNDING, Factor, Precision, factor, product, transposed
from distrec.codes.rows import Rows, Spread, sum_by

_NEGLIGIBLE = -36.7  # log 2⁻⁵³: a responsibility that float64 could not add to 1
_CANCELLATION = 1.7e4  # log-densities whose terms exceed this are off by 1e-3 nat in float32
_PIECE = {"cpu": 2**24, "cuda": 2**28}  # statistics worked on at once, by device
_DOUBLE = 2**24  # the same of float64 statistics on a GPU, for tight components


class Parameters(NamedTuple):
    weights: Float[Tensor, " K"]
    means: Float[Tensor, "K D"]
    covariances: Tensor


class Piece(NamedTuple):
    """Some rows of a block, ready for the E-step; the next piece overwrites all but x."""

    x: Float[Tensor, "n D"]
    parts: tuple[Tensor, ...]  # F's columns: (F,), or (x, rest)
    factors: tuple[Factor, ...]  # the same, ready for products
    scores: Float[Tensor, "n K"]  # log π_k N(x | μ_k, Σ_k)


Scorer = Callable[[Tensor], Iterator[Piece]]  # a block of rows → its pieces


def in_parts(device: torch.device | str) -> bool:
    """Return whether a device takes x and rest(x) apart."""
    return torch.device(device).type == "cuda"


class Room:
    """Buffers for one piece of a block after the other, which one scorer at a time uses.

    Fresh memory costs a third of the product's time, and scatters what lives longer over the heap.
    """

    def __init__(self, kind: Covariance, rows: Rows, k: int, precision: Precision):
        self.kind = kind
        self.precision: Precision = precision
        self.in_parts = in_parts(rows.device)
        columns = kind.columns(rows.width)
        n = max(1, min(rows.block, _PIECE[torch.device(rows.device).type] // columns))
        dtype = torch.float64 if kind.needs_double else rows.dtype
        width = columns - rows.width if self.in_parts else columns
        self._features = torch.empty(n, width, dtype=dtype, device=rows.device)
        self._scores = torch.empty(n, k, dtype=dtype, device=rows.device)

    def pieces(self, x: Float[Tensor, "n D"], frame: Tensor) -> Iterator[Piece]:
        """Yield the pieces of a block, their scores yet to be filled in."""
        for piece in x.to(self._scores.dtype).split(len(self._scores)):
            buffer = self._features[: len(piece)]
            if self.in_parts:
                parts = (piece, self.kind.rest(piece, frame, buffer))
            else:
                parts = (features(self.kind, piece, frame, buffer),)
            factors = tuple(factor(part, self.precision) for part in parts)
            yield Piece(piece, parts, factors, self._scores[: len(piece)])

    def columns(self, weight: Float[Tensor, "K S"], d: int) -> tuple[Factor, ...]:
        """Return the columns of W that go with the parts of F."""
        parts = (weight[:, :d], weight[:, d:]) if self.in_parts else (weight,)
        return tuple(factor(part.contiguous(), self.precision) for part in parts)


class Density:
    """Yields log π_k N(x | μ_k, Σ_k) for pieces of a block of rows.

    Tight components, whose terms would cancel too much in float32, are worked out again in float64 for the rows
    they might matter to.
    """

    def __init__(self, parameters: Parameters, rows: Rows, about: Spread, room: Room):
        self._room, kind = room, room.kind
        self.frame = kind.frame(parameters.covariances)
        weight, constant = kind.natural(parameters.means, self.frame)
        constant = constant + parameters.weights.log()
        dtype = torch.float64 if kind.needs_double else rows.dtype
        typical = (about.variance + about.mean.square()).sqrt()[None]
        size = weight.abs()
        terms = size @ features(kind, typical, self.frame).abs()[0]
        extreme = kind.extreme(rows.width, about.bound, parameters.covariances)
        highest = (size @ extreme + constant.abs()).max()
        *term, self.bound = torch.cat([terms, highest[None]]).tolist()  # the bound: of |log-density|
        is_tight = dtype == torch.float32 and any(value > _CANCELLATION for value in term)
        none = torch.empty(0, dtype=torch.int64, device=rows.device)
        self.tight: Int[Tensor, " M"] = (terms > _CANCELLATION).nonzero()[:, 0] if is_tight else none
        self._margin = (16 * ROUNDING[room.precision] * terms[self.tight] - _NEGLIGIBLE).to(dtype)
        self._exact = weight[self.tight], constant[self.tight]
        self._weights, self._constant = room.columns(weight.to(dtype), rows.width), constant.to(dtype)

    def __call__(self, x: Float[Tensor, "n D"]) -> Iterator[Piece]:
        for piece in self._room.pieces(x, self.frame):
            yield piece._replace(scores=self._score(piece))

    def _score(self, piece: Piece) -> Float[Tensor, "n K"]:
        precision, scores = self._room.precision, piece.scores
        if self._room.in_parts:
            scores = product(piece.factors[0], self._weights[0], precision, scores, self._constant)
            scores = product(piece.factors[1], self._weights[1], precision, scores, scores)
        else:
            scores = product(piece.factors[0], self._weights[0], precision, scores).add_(self._constant)
        if len(self.tight):
            (self._refine_all if self._room.in_parts else self._refine)(piece.x, scores)
        return scores

    def _refine(self, x: Float[Tensor, "n D"], scores: Float[Tensor, "n K"]) -> None:
        others = scores.index_fill(1, self.tight, -torch.inf).amax(1, keepdim=True)
        row, place = (scores[:, self.tight] > others - self._margin).nonzero().unbind(1)
        weight, constant = self._exact
        if len(row) > len(x):  # one product is cheaper than so many pairs
            self._refine_all(x, scores)
        else:
            double = features(self._room.kind, x[row].double(), self.frame)
            scores[row, self.tight[place]] = ((double * weight[place]).sum(1) + constant[place]).to(scores)

    def _refine_all(self, x: Float[Tensor, "n D"], scores: Float[Tensor, "n K"]) -> None:
        weight, constant = self._exact
        for low, part in _in_double(x, weight.shape[1], self._room.in_parts):
            double = features(self._room.kind, part, self.frame)
            scores[low : low + len(part), self.tight] = (double @ weight.T + constant).to(scores)


def expect(
    piece: Piece, width: int, precision: Precision, tight: Int[Tensor, " M"], exact: Callable[[Tensor], Tensor]
) -> tuple[Float[Tensor, ""], Float[Tensor, " K"], Float[Tensor, "K D"], Float[Tensor, "K R"]]:
    """(Σ_n log p(x_n), Σ_n r_nk, Σ_n r_nk x_n, Σ_n r_nk rest(x_n)) of some rows, F's first `width` columns.

    Overwrites the scores.  The sums of tight components are taken over exact(x), the float64 statistics.
    """
    if len(piece.parts) > 1:
        return _expect_in_parts(piece, width, precision, tight, exact)
    likelihood, count, sums = _expect(piece, width, precision, tight, exact)
    d = piece.x.shape[1]
    return likelihood, count, sums[:, :d], sums[:, d:]


def _expect(
    piece: Piece, width: int, precision: Precision, tight: Int[Tensor, " M"], exact: Callable[[Tensor], Tensor]
) -> tuple[Float[Tensor, ""], Float[Tensor, " K"], Float[Tensor, "K S"]]:
    """On a CPU: in many dimensions nearly every responsibility is negligible, so the sums touch only the others."""
    x, statistics, scores = piece.x, piece.parts[0][:, :width], piece.scores
    k = scores.shape[1]
    top = scores.amax(1)
    kept = scores.sub_(top[:, None]) > _NEGLIGIBLE
    if int(kept.sum()) <= kept.numel() // 8:
        code, row = kept.T.nonzero().unbind(1)
        weight = scores[row, code].exp()
        norm = torch.zeros_like(top).index_add_(0, row, weight)
        weight /= norm[row]
        count, part = torch.bincount(code, weight.double(), k), sum_by(code, row, weight, statistics, k)
        pairs = torch.isin(code, tight)
        code, row, weight = code[pairs], row[pairs], weight[pairs].double()
    else:
        share = scores.exp_()
        norm = share.sum(1)
        share /= norm[:, None]
        count = share.sum(0, dtype=torch.float64)
        wide = tuple(half[:, :width] for half in piece.factors[0])
        part = product(transposed(factor(share, precision)), transposed(wide), precision)
        place, row = (share[:, tight] > 0).T.nonzero().unbind(1)
        code = tight[place]
        weight = share[row, code].double()
    part = part.double()
    if len(row):
        terms = exact(x[row])
        order = torch.arange(len(row), device=row.device)
        part[tight] = sum_by(code, order, weight, terms, k)[tight]
    return (top.double() + norm.double().log()).sum(), count, part


def _expect_in_parts(
    piece: Piece, width: int, precision: Precision, tight: Int[Tensor, " M"], exact: Callable[[Tensor], Tensor]
) -> tuple[Float[Tensor, ""], Float[Tensor, " K"], Float[Tensor, "K D"], Float[Tensor, "K R"]]:
    """On a GPU: dense, without a size that depends on values; log p(x) = the highest score − log its responsibility."""
    x, d = piece.x, piece.x.shape[1]
    top = piece.scores.amax(1)
    share = piece.scores.softmax(1)
    likelihood = (top.double() - share.amax(1).double().log()).sum()
    responsibility = transposed(factor(share, precision))
    rest = tuple(half[:, : width - d] for half in piece.factors[1])
    firsts, seconds = (
        product(responsibility, transposed(part), precision).double() for part in (piece.factors[0], rest)
    )
    if len(tight):
        sums = torch.zeros(len(tight), width, dtype=torch.float64, device=x.device)
        tight_share = share[:, tight].double()
        for low, part in _in_double(x, width, True):
            sums.addmm_(tight_share[low : low + len(part)].T, exact(part))
        firsts[tight], seconds[tight] = sums[:, :d], sums[:, d:]
    return likelihood, share.sum(0, dtype=torch.float64), firsts, seconds


def _in_double(x: Float[Tensor, "n D"], width: int, in_pieces: bool) -> Iterator[tuple[int, Float[Tensor, "m D"]]]:
    """Yield (number of the first row, rows in float64), so few at once that their statistics do not fill the memory."""
    n = max(1, _DOUBLE // width) if in_pieces else max(1, len(x))
    for low in range(0, len(x), n):
        yield low, x[low : low + n].double()
