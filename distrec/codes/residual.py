"""Levels of codes: each level quantises what the levels before it left over.   Source: TONE Eq. 3-6.

    r_0 = x,   code_l = assign(r_l),   r_{l+1} = r_l − codebook_l[code_l]

Shapes: N rows on this rank, D dimensions, K codes of a level, L levels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distrec.codes.gmm import GaussianMixture
from distrec.codes.kmeans import nearest
from distrec.codes.mixture.covariance import Kind
from distrec.codes.mixture.density import Parameters
from distrec.codes.mixture.precision import tf32
from distrec.codes.rows import ExactSum, Rows, State, largest, on_host, spread

Assignment = Literal["cosine", "posterior", "euclid", "fitted"]


@runtime_checkable
class Quantiser(Protocol):
    """What a level is fitted by."""

    def run(self, rows: Rows, state: State | None = None) -> Iterator[State]:
        """States, the last with done = 1; goes on from `state` bit for bit."""
        ...

    def adopt(self, state: State) -> None:
        """Take a finished state for the fit."""
        ...

    @property
    def codebook(self) -> Float[Tensor, "K D"]: ...

    def codes(self, rows: Rows) -> Int[Tensor, " N"]:
        """The quantiser's own choice for each row of this rank."""
        ...

    def report(self) -> dict[str, Any]:
        """What the fit says about itself, JSON-ready."""
        ...


@dataclass(frozen=True)
class Level:
    """A fitted level, enough to give codes to any rows."""

    codebook: Float[Tensor, "K D"]
    assignment: Assignment
    mixture: Parameters | None = None  # of `posterior`
    covariance_type: Kind = "diag"

    def codes(self, rows: Rows) -> Int[Tensor, " N"]:
        """The codeword of each row of this rank: by cosine, by distance, or the likeliest component.

        `fitted` means by distance here: a quantiser's own choice is known only for the rows it was fitted on.
        """
        if self.assignment == "cosine":
            return most_similar(rows, self.codebook)
        if self.assignment == "posterior" and self.mixture is not None:
            return GaussianMixture.of(self.covariance_type, self.mixture).codes(rows)
        return nearest(rows, self.codebook)


class Levels:
    """Fits levels one after the other.

    After a fit: levels_, codes_ (I × L, of all rows, on every rank), reports_ (one a level).

    Raises: ValueError when `posterior` is asked of a quantiser that has none.
    """

    levels_: list[Level]
    codes_: Int[Tensor, "I L"]
    reports_: list[dict[str, Any]]

    def __init__(self, make: Callable[[int], Quantiser], n_levels: int, assignment: Assignment):
        if assignment == "posterior" and not isinstance(make(0), GaussianMixture):
            raise ValueError("codes.assignment=posterior needs a mixture: codes.name=gmm")
        self.make = make
        self.n_levels = n_levels
        self.assignment: Assignment = assignment

    def run(self, rows: Rows, state: State | None = None) -> Iterator[State]:
        """A state after each iteration of each level; goes on from any of them bit for bit.

        Keys: `0.…`, `1.…` for the quantisers' states; those of finished levels have done = 1.
        """
        state = on_host(state or {})
        is_turned = rows.centre is not None
        rows = rows.held()
        energies = [energy(rows)]
        self.levels_, self.reports_, codes = [], [], []
        for number in range(self.n_levels):
            quantiser, prefix = self.make(number), f"{number}."
            # what is fitted does not depend on the centre, but its rounding does
            centre = spread(rows).mean if number == 0 and not is_turned else None
            fitted_on = rows if centre is None else replace(rows, centre=centre).held()
            for inner in quantiser.run(fitted_on, _below(state, prefix) or None):
                state = state | {prefix + key: value for key, value in inner.items()}
                yield state
            quantiser.adopt(_below(state, prefix))
            codebook = quantiser.codebook if centre is None else quantiser.codebook + centre
            level = Level(codebook, self.assignment)
            if isinstance(quantiser, GaussianMixture):
                mixture = Parameters(quantiser.weights_, codebook, quantiser.covariances_)
                level = replace(level, mixture=mixture, covariance_type=quantiser.covariance_type)
            own = quantiser.codes(fitted_on)
            chosen = own if self.assignment in ("posterior", "fitted") else level.codes(rows)
            del fitted_on
            rows = rows.less(codebook, chosen).held()
            energies.append(energy(rows))
            codes.append(rows.together(chosen.int()))
            mismatch = int((rows.together(own.int()) != codes[-1]).sum())
            self.levels_.append(level)
            self.reports_.append(
                quantiser.report()
                | {
                    "residual_before": energies[-2],
                    "residual": energies[-1],
                    "residual_share": energies[-1] / max(energies[0], 1e-300),
                    "mismatch": mismatch / rows.total,
                }
            )
        self.codes_ = torch.stack(codes, 1)


def _below(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def assign(rows: Rows, levels: Sequence[Level]) -> Int[Tensor, "N L"]:
    """The codes of this rank's rows by fitted levels."""
    codes = []
    for level in levels:
        codes.append(level.codes(rows))
        rows = rows.less(level.codebook, codes[-1])
    return torch.stack(codes, 1).int()


def most_similar(rows: Rows, codebook: Float[Tensor, "K D"]) -> Int[Tensor, " N"]:
    """argmax_k cos(x, μ_k).   Deviation: a row of zeros, which has no direction, takes the nearest codeword."""
    words = codebook.to(rows.device, rows.dtype)
    norms = words.norm(dim=1)
    unit = words / norms.clamp(min=torch.finfo(rows.dtype).tiny)[:, None]
    shut = torch.where(norms > 0, 0.0, -torch.inf).to(words)
    smallest = int(norms.argmin())  # the nearest to zero
    codes = torch.empty(len(rows.source), dtype=torch.int64, device=rows.device)
    for place, x in rows.blocks():
        with tf32(False):
            cosine = torch.addmm(shut, x, unit.T)
        codes[place] = torch.where(x.any(1), cosine.argmax(1), smallest)
    return codes


def zero_rows(rows: Rows) -> int:
    """How many rows of the whole table are zero."""
    count = torch.zeros(1, dtype=torch.int64, device=rows.device)
    for _, x in rows.blocks():
        count += (~x.any(1)).sum()
    rows.sum_(count)
    return int(count)


def energy(rows: Rows) -> float:
    """Mean ‖x‖² over all rows."""
    total = ExactSum((), largest(rows) ** 2 * rows.width * rows.total, rows.device)
    for _, x in rows.blocks():
        total.add(x.square().sum(dtype=torch.float64))
    return float(total.over(rows.sum_)) / rows.total
