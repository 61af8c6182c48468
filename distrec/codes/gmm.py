"""Gaussian mixture by expectation-maximisation over any number of ranks.

Parameters and fitted attributes carry scikit-learn's names.  Each rank holds some rows; only sums over
components cross the network.

Shapes: N rows on this rank, n rows of a block, K components, D dimensions, S statistics.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distrec.codes.kmeans import KMeans, Means
from distrec.codes.mixture.covariance import KINDS, Kind, features
from distrec.codes.mixture.density import Density, Parameters, Piece, Room, Scorer, expect
from distrec.codes.mixture.precision import Precision
from distrec.codes.rows import ExactSum, Rows, State, scatter, spread

_PARAMETERS = ("weights", "means", "covariances")


class GaussianMixture:
    """p(x) = Σ_k π_k N(x | μ_k, Σ_k).   Source: TONE Eq. 4-5.

    weights_ (K), means_ (K × D), covariances_ (diag K × D, spherical K, tied D × D, full K × D × D), all float64;
    lower_bound_: mean log-likelihood of a row, in nats; n_iter_, converged_.

    `reg_covar` is a share of the rows' mean variance (scikit-learn's is absolute), added to every variance.

    Raises: ValueError when there are fewer rows than components; when `full` has no more rows a component than dimensions.
    """

    weights_: Float[Tensor, " K"]
    means_: Float[Tensor, "K D"]
    covariances_: Tensor
    lower_bound_: float
    n_iter_: int
    converged_: bool

    def __init__(
        self,
        n_components: int,
        *,
        covariance_type: Kind = "diag",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 3,
        seed: int = 0,
        precision: Precision = "float32",
    ):
        self.n_components = n_components
        self.covariance_type: Kind = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.seed = seed
        self.precision: Precision = precision

    def fit(self, rows: Rows, start: Parameters | None = None) -> "GaussianMixture":
        """The best of n_init fits by log-likelihood; with `start`, the one fit from there."""
        for state in self.run(rows, start=start):
            if state["done"]:
                self.adopt(state)
        return self

    @classmethod
    def of(cls, covariance_type: Kind, parameters: Parameters) -> "GaussianMixture":
        """The mixture with these parameters."""
        mixture = cls(len(parameters.weights), covariance_type=covariance_type)
        mixture.weights_, mixture.means_, mixture.covariances_ = parameters
        return mixture

    def adopt(self, state: State) -> None:
        """Take a finished state for the fit."""
        self.weights_, self.means_, self.covariances_ = (state[f"best_{name}"] for name in _PARAMETERS)
        self.lower_bound_, self.n_iter_ = float(state["best_lower_bound"]), int(state["best_n_iter"])
        self.converged_ = bool(state["best_converged"])

    def run(self, rows: Rows, state: State | None = None, start: Parameters | None = None) -> Iterator[State]:
        """The state after each EM iteration, the last with done = 1; goes on from `state` bit for bit."""
        self._check(rows)
        fit = _Fit(self, rows)
        state = state or fit.begin(0, start)
        while not state["done"]:
            state = fit.iterate(state, n_init=1 if start else self.n_init)
            yield state

    def log_joint(self, rows: Rows) -> Iterator[tuple[slice, Float[Tensor, "n K"]]]:
        """log π_k N(x | μ_k, Σ_k), block after block; its argmax is the likeliest component."""
        parameters = Parameters(self.weights_, self.means_, self.covariances_)
        room = Room(KINDS[self.covariance_type], rows, len(self.weights_), "float32")
        density = Density(parameters, rows, spread(rows), room)
        for place, x in rows.blocks():
            yield place, torch.cat([piece.scores.clone() for piece in density(x)])

    @property
    def codebook(self) -> Float[Tensor, "K D"]:
        return self.means_

    def codes(self, rows: Rows) -> Int[Tensor, " N"]:
        """The likeliest component of each row of this rank."""
        codes = torch.empty(len(rows.source), dtype=torch.int64, device=rows.device)
        for place, scores in self.log_joint(rows):
            codes[place] = scores.argmax(1)
        return codes

    def report(self) -> dict[str, Any]:
        return {"log_likelihood": self.lower_bound_, "iterations": self.n_iter_, "converged": self.converged_}

    def _check(self, rows: Rows) -> None:
        k, d = self.n_components, rows.width
        if k > rows.total:
            raise ValueError(f"{k} components for {rows.total:,} rows: lower the number of components")
        if self.covariance_type == "full" and rows.total <= k * d:
            raise ValueError(
                f"covariance_type=full needs more rows a component than dimensions, got {rows.total / k:.0f} rows for "
                f"{d} dimensions: reduce to {max(1, rows.total // k // 2)} dimensions or fewer by PCA, or take diag"
            )


class _Fit:
    """What the iterations of one fit share."""

    def __init__(self, model: GaussianMixture, rows: Rows):
        self.model, self.rows = model, rows
        self.kind = KINDS[model.covariance_type]
        self.about = spread(rows)
        # rows that are all the same leave no variance to be relative to
        self.floor = model.reg_covar * float(self.about.variance.mean()) or 1e-12 * self.about.bound**2
        self.scatter = scatter(rows, self.about.bound) if self.kind.needs_scatter else torch.empty(0)
        self.room = Room(self.kind, rows, model.n_components, model.precision)

    def density(self, parameters: Parameters) -> Density:
        return Density(parameters, self.rows, self.about, self.room)

    def begin(self, init: int, start: Parameters | None = None) -> State:
        """The state before the first iteration of one of the n_init fits: k-means' clusters, or `start`."""
        rows, k = self.rows, self.model.n_components
        if start is None:
            clusters = KMeans(k, max_iter=10, seed=1_000_003 * self.model.seed + init).fit(rows)
            near = Means(clusters.cluster_centers_, rows)
            unit = torch.eye(rows.width, dtype=torch.float64, device=rows.device)

            def one_hot(x: Tensor) -> Iterator[Piece]:
                codes = near.scores(x).argmin(1, keepdim=True)
                first = 0
                for piece in self.room.pieces(x, unit):
                    code = codes[first : first + len(piece.x)]
                    first += len(piece.x)
                    piece.scores.fill_(-torch.inf).scatter_(1, code, 0.0)
                    yield piece

            _, start = self.step(one_hot, 1.0, torch.empty(0, dtype=torch.int64, device=rows.device))
        state = dict(zip(_PARAMETERS, (value.double().to(rows.device) for value in start), strict=True))
        return state | {
            "lower_bound": torch.tensor(-torch.inf, dtype=torch.float64),
            "n_iter": torch.tensor(0),
            "init": torch.tensor(init),
            "done": torch.tensor(False),
        }

    def iterate(self, state: State, n_init: int) -> State:
        """One EM iteration; after the last of a fit, the next fit begins."""
        model, before = self.model, Parameters(*(state[name] for name in _PARAMETERS))
        density = self.density(before)
        lower_bound, after = self.step(density, density.bound, density.tight)
        n_iter = state["n_iter"] + 1
        converged = abs(lower_bound - float(state["lower_bound"])) < model.tol
        state = state | dict(zip(_PARAMETERS, after, strict=True))
        state |= {"n_iter": n_iter, "lower_bound": torch.tensor(lower_bound, dtype=torch.float64)}
        if not converged and int(n_iter) < model.max_iter:
            return state
        if lower_bound > float(state.get("best_lower_bound", -torch.inf)):
            names = (*_PARAMETERS, "lower_bound", "n_iter")
            state |= {f"best_{name}": state[name] for name in names} | {"best_converged": torch.tensor(converged)}
        if int(state["init"]) + 1 < n_init:
            best = {key: value for key, value in state.items() if key.startswith("best_")}
            return self.begin(int(state["init"]) + 1) | best
        return state | {"done": torch.tensor(True)}

    def step(self, score: Scorer, bound: float, tight: Tensor) -> tuple[float, Parameters]:
        """(mean log-likelihood before, parameters after) one EM iteration."""
        rows, k, d = self.rows, self.model.n_components, self.rows.width
        width, largest = self.kind.statistics(d), self.about.bound

        def make(shape: tuple[int, ...], limit: float) -> ExactSum:
            return ExactSum(shape, limit * rows.total, rows.device)

        def exact(x: Tensor) -> Tensor:
            return features(self.kind, x.double(), x)[:, :width]

        counts, firsts = make((k,), 1.0), make((k, d), largest)
        seconds = make((k, width - d), self.kind.limit(d, largest))
        likelihood = ExactSum((), (2 * bound + 64) * rows.total, rows.device, words=2)
        for _, x in rows.blocks():
            for piece in score(x):
                sums = expect(piece, width, self.room.precision, tight, exact)
                for total, part in zip((likelihood, counts, firsts, seconds), sums, strict=True):
                    total.add(part)
        count = counts.over(rows.sum_)
        sums = torch.cat([firsts.over(rows.sum_), seconds.over(rows.sum_)], 1)
        some = count + 10 * torch.finfo(torch.float64).eps
        means, covariances = self.kind.estimate(some, sums, self.scatter, self.floor)
        after = Parameters(some / some.sum(), means, covariances)
        is_dead = count < 0.5
        nats, n_dead = torch.stack([likelihood.over(rows.sum_), is_dead.sum().double()]).tolist()  # read at once
        return nats / rows.total, self._revive(after, is_dead.nonzero()[:, 0]) if n_dead else after

    def _revive(self, now: Parameters, dead: Tensor) -> Parameters:
        """Components with less than half a row move to the rows that are explained worst.

        Only where that raises the log-likelihood: the row must gain more than the weight it takes from the others.
        """
        if len(dead) == len(now.weights):
            return now
        rows, kind = self.rows, self.kind
        density = self.density(now)

        def unexplained(_: slice, x: Tensor) -> Tensor:
            return -torch.cat([piece.scores.logsumexp(1) for piece in density(x)])

        numbers, surprise = rows.best(unexplained, len(dead))
        found = rows.at(numbers).double()
        fresh = kind.average(now.weights, now.covariances)
        covariance = fresh.expand(len(found), *fresh.shape) if kind.is_own else fresh
        frame = kind.frame(covariance)
        weight, constant = kind.natural(found, frame)
        density_there = (features(kind, found, frame) * weight).sum(1) + constant - math.log(rows.total)
        is_first = ~(found[:, None] == found[None]).all(2).tril(-1).any(1)
        taken = (density_there + surprise > 2) & is_first
        place = dead[: len(found)][taken]
        weights, means, covariances = (value.clone() for value in now)
        weights[place], means[place] = 1 / rows.total, found[taken]
        if kind.is_own:
            covariances[place] = fresh
        return Parameters(weights / weights.sum(), means, covariances)
