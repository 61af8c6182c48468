"""k-means over any number of ranks: seeding without a sequential loop, Lloyd's iterations.

Shapes: N rows on this rank, D dimensions, K clusters.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distrec.codes.mixture.precision import tf32
from distrec.codes.rows import ExactSum, Rows, State, largest, spread, sum_by_code, tally

Init = Literal["k-means||", "random"]
_DRAWS, _PRUNINGS, _SURPLUS = 4, 8, 2  # rounds of drawing, rounds of pruning, candidates for each seed


class KMeans:
    """min Σ_n min_k ‖x_n − μ_k‖².

    An empty cluster moves to the worst served row.  Attributes after a fit: cluster_centers_ (K × D), inertia_ (of the
    means before their last update), n_iter_.

    Raises: ValueError when there are fewer rows than clusters.
    """

    cluster_centers_: Float[Tensor, "K D"]
    inertia_: float
    n_iter_: int

    def __init__(
        self, n_clusters: int, *, init: Init = "k-means||", tol: float = 1e-4, max_iter: int = 100, seed: int = 0
    ):
        self.n_clusters = n_clusters
        self.init: Init = init
        self.tol = tol  # relative fall of the inertia below which it stops
        self.max_iter = max_iter
        self.seed = seed

    def fit(self, rows: Rows) -> "KMeans":
        for state in self.run(rows):
            self.adopt(state)
        return self

    def adopt(self, state: State) -> None:
        self.cluster_centers_ = state["means"]
        self.inertia_, self.n_iter_ = float(state["inertia"]), int(state["n_iter"])

    @property
    def codebook(self) -> Float[Tensor, "K D"]:
        return self.cluster_centers_

    def codes(self, rows: Rows) -> Int[Tensor, " N"]:
        return nearest(rows, self.cluster_centers_)

    def report(self) -> dict[str, Any]:
        return {"inertia": self.inertia_, "iterations": self.n_iter_}

    def run(self, rows: Rows, state: State | None = None) -> Iterator[State]:
        """The state after each iteration, the last with done = 1; goes on from `state` bit for bit."""
        if self.n_clusters > rows.total:
            raise ValueError(f"{self.n_clusters} clusters for {rows.total:,} rows: lower the number of clusters")
        about = spread(rows)
        energy = about.energy * rows.total
        if state is None:
            start = random_rows if self.init == "random" else seeds
            state = {
                "means": start(rows, self.n_clusters, self.seed),
                "inertia": torch.tensor(torch.inf, dtype=torch.float64),
                "n_iter": torch.tensor(0),
                "done": torch.tensor(self.max_iter == 0),
            }
        while not state["done"]:
            means, inertia = lloyd(rows, state["means"], about.bound, energy)
            n_iter = state["n_iter"] + 1
            falls = inertia < state["inertia"] * (1 - self.tol)
            done = torch.tensor(not falls or int(n_iter) >= self.max_iter)
            state = {
                "means": means,
                "inertia": torch.tensor(inertia, dtype=torch.float64),
                "n_iter": n_iter,
                "done": done,
            }
            yield state


class Means:
    """K means, ready to be compared with blocks of rows."""

    def __init__(self, means: Float[Tensor, "K D"], rows: Rows):
        self.means = means.to(rows.device, rows.dtype)
        middle = means.mean(0, dtype=torch.float64)
        # means that lie far from the origin and near each other would cancel in ‖μ‖² − 2 x·μ
        self.is_plain = not bool(middle.square().sum() > 4 * (means - middle).square().sum(1).mean())
        self._shift = middle.to(self.means) if not self.is_plain else None
        self._moved = (means - middle).to(self.means) if not self.is_plain else self.means
        self._norms = self._moved.square().sum(1)
        self._scores = torch.empty(min(rows.block, len(rows.source)), len(means), dtype=rows.dtype, device=rows.device)

    def scores(self, x: Float[Tensor, "n D"]) -> Float[Tensor, "n K"]:
        """‖x − μ‖² less what depends on x alone, which orders the means of a row; overwritten by the next call."""
        with tf32(False):
            return torch.addmm(self._norms, self._near(x), self._moved.T, alpha=-2, out=self._scores[: len(x)])

    def distance(self, x: Float[Tensor, "n D"]) -> Float[Tensor, " n"]:
        """‖x − μ‖² to the nearest mean, 0 where rounding hides it."""
        square = self.square(x)
        least = self.scores(x).amin(1) + square
        return torch.where(least > 16 * torch.finfo(x.dtype).eps * square, least, 0)

    def square(self, x: Float[Tensor, "n D"]) -> Float[Tensor, " n"]:
        """What `scores` leave out of ‖x − μ‖²."""
        return self._near(x).square().sum(1)

    def _near(self, x: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        return x if self._shift is None else x - self._shift


def nearest(rows: Rows, means: Float[Tensor, "K D"]) -> Int[Tensor, " N"]:
    """The nearest mean of each row of this rank."""
    near = Means(means, rows)
    codes = torch.empty(len(rows.source), dtype=torch.int64, device=rows.device)
    for place, x in rows.blocks():
        codes[place] = near.scores(x).argmin(1)
    return codes


class ClusterSums:
    """Σ x and the number of rows of each of K clusters; `bound`: what no |x| reaches."""

    def __init__(self, rows: Rows, k: int, bound: float):
        self._rows = rows
        self._sums = ExactSum((k, rows.width), bound * rows.total, rows.device)
        self._counts = torch.zeros(k, dtype=torch.int64, device=rows.device)

    def add(self, code: Int[Tensor, " n"], x: Float[Tensor, "n D"]) -> None:
        self._sums.add(sum_by_code(code, x, len(self._counts)))
        self._counts += tally(code, len(self._counts))

    def means(self) -> tuple[Float[Tensor, "K D"], Int[Tensor, " K"]]:
        """(the mean of each cluster's rows on all ranks, zeros where there are none; how many rows), asked once."""
        self._rows.sum_(self._counts)
        return self._sums.over(self._rows.sum_) / self._counts.clamp(min=1)[:, None], self._counts


def cluster_means(rows: Rows, labels: Int[Tensor, " I"], k: int, bound: float) -> Float[Tensor, "K D"]:
    """The mean of each cluster's rows (zeros where there are none)."""
    sums = ClusterSums(rows, k, bound)
    for place, x in rows.blocks():
        sums.add(labels[rows.first + place.start : rows.first + place.stop].long(), x)
    return sums.means()[0]


class Labelled:
    """Clusters that the nearest mean does not tell: each row of the fit has its label."""

    cluster_centers_: Float[Tensor, "K D"]
    labels_: Int[Tensor, " I"]

    @property
    def codebook(self) -> Float[Tensor, "K D"]:
        return self.cluster_centers_

    def codes(self, rows: Rows) -> Int[Tensor, " N"]:
        """The labels of the rows it was fitted on; of any others, the nearest mean."""
        if len(self.labels_) == rows.total:
            return self.labels_[rows.first : rows.first + len(rows.source)].long()
        return nearest(rows, self.cluster_centers_)


def lloyd(rows: Rows, means: Float[Tensor, "K D"], bound: float, energy: float) -> tuple[Float[Tensor, "K D"], float]:
    """(the means of the rows nearest to each of `means`, the inertia of `means`); `energy`: Σ ‖x‖² over all rows."""
    k = len(means)
    near = Means(means, rows)
    sums = ClusterSums(rows, k, bound)
    least = ExactSum((), 4 * bound**2 * rows.width * rows.total, rows.device)
    for _, x in rows.blocks():
        value, code = near.scores(x).min(1)
        sums.add(code, x)
        least.add((value if near.is_plain else value + near.square(x)).sum(dtype=torch.float64))
    new, counts = sums.means()
    is_empty = counts == 0
    inertia, n_empty = torch.stack([least.over(rows.sum_), is_empty.sum().double()]).tolist()  # read at once
    if n_empty:
        empty = is_empty.nonzero()[:, 0]
        new[empty] = near.means[empty].double()
        numbers, far = rows.best(lambda _, x: near.distance(x), len(empty))
        moved = numbers[far > 0]
        new[empty[: len(moved)]] = rows.at(moved).double()
    return new, inertia + energy * near.is_plain


def random_rows(rows: Rows, k: int, seed: int) -> Float[Tensor, "K D"]:
    """k rows, drawn without replacement."""
    numbers, _ = rows.best(lambda place, _: rows.random(place, seed, 0), k)
    return rows.at(numbers).double()


def seeds(rows: Rows, k: int, seed: int) -> Float[Tensor, "K D"]:
    """k starting means, from a fixed number of passes whatever k.

    Draw 2k rows in four rounds, each with probability ∝ its squared distance to those drawn before; then drop,
    in eight rounds of a Lloyd iteration each, those whose loss would raise the inertia least:
    utility_k = Σ_{n at k} (d²_second(n) − d²_first(n)).

    Source: Bahmani et al. 2012 (k-means||); Fritzke 2020 (utility).
    Deviation: k-means|| reduces its candidates by a sequential k-means++; pruning by utility is parallel and, on
    the text vectors of Beauty, ends about 1 % below scikit-learn's greedy k-means++ (RESULTS.md).
    """
    bound = largest(rows)
    wanted = min(_SURPLUS * k, rows.total) if k > 1 else 1
    means = _draw(rows, wanted, seed)
    surplus = wanted - k
    for r in range(_PRUNINGS if surplus else 0):
        drop = surplus * (r + 1) // _PRUNINGS - surplus * r // _PRUNINGS
        means = _prune(rows, means, drop, bound)
    return means


def _draw(rows: Rows, wanted: int, seed: int) -> Float[Tensor, "M D"]:
    """Rows drawn ∝ d², a round's without replacement: the largest d²/e, e exponential (an exponential race)."""
    numbers, _ = rows.best(lambda place, _: rows.random(place, seed, 0), 1)
    means = latest = rows.at(numbers)
    least = torch.full((len(rows.source),), torch.inf, dtype=rows.dtype, device=rows.device)
    for r in range(_DRAWS):
        count = (wanted - 1) * (r + 1) // _DRAWS - (wanted - 1) * r // _DRAWS
        if not count:
            continue

        new = Means(latest, rows)

        def race(place: slice, x: Tensor, new: Means = new, r: int = r) -> Tensor:
            least[place] = torch.minimum(least[place], new.distance(x))
            return least[place] / rows.random(place, seed, r + 1).clamp(min=1e-30)

        numbers, _ = rows.best(race, count)
        latest = rows.at(numbers)
        means = torch.cat([means, latest])
    return means.double()


def _prune(rows: Rows, means: Float[Tensor, "M D"], drop: int, bound: float) -> Float[Tensor, "L D"]:
    """One Lloyd iteration, then the `drop` means of least utility are left out."""
    m = len(means)
    near = Means(means, rows)
    sums = ClusterSums(rows, m, bound)
    utility = ExactSum((m,), 4 * bound**2 * rows.width * rows.total, rows.device)
    for _, x in rows.blocks():
        d, two = near.scores(x).topk(2, dim=1, largest=False)
        sums.add(two[:, 0], x)
        utility.add(sum_by_code(two[:, 0], (d[:, 1:] - d[:, :1]).contiguous(), m)[:, 0])
    new, counts = sums.means()
    new = torch.where(counts[:, None] > 0, new, means)
    kept = utility.over(rows.sum_).argsort(stable=True)[drop:].sort().values
    return new[kept]
