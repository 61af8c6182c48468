"""k-means whose clusters hold equally many rows (sizes differ by at most one).

Source: the constrained clustering of ResBi-Kmeans.  Each iteration solves a transport problem: prices make popular
means dearer until every mean draws its share (Sinkhorn in the log domain), then what is left over is dealt out by
regret.  Deviation: the paper deals rows out one by one; prices take a few passes whatever the number of rows, and
end within two percent of the optimal assignment (tests).

Shapes: I rows of all ranks, N rows on this rank, n rows of a block, D dimensions, K clusters.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distrec.codes.kmeans import Labelled, Means, cluster_means, seeds
from distrec.codes.rows import ExactSum, Rows, State, largest, tally

_FIRST, _LATER = 60, 10  # passes that find the prices: at the first iteration, at each later one
_ROUNDS = 100  # of dealing
_HOTTEST, _COOLEST = 4.0, 0.1  # temperatures between which the first prices are found, in typical regrets


class BalancedKMeans(Labelled):
    """Attributes after a fit: cluster_centers_ (K × D), labels_ (I, of all rows), inertia_ (of the means before their
    last update), n_iter_."""

    inertia_: float
    n_iter_: int

    def __init__(self, n_clusters: int, *, max_iter: int = 20, seed: int = 0):
        self.n_clusters = n_clusters
        self.max_iter = max_iter
        self.seed = seed

    def adopt(self, state: State) -> None:
        self.cluster_centers_, self.labels_ = state["means"], state["labels"]
        self.inertia_, self.n_iter_ = float(state["inertia"]), int(state["n_iter"])

    def report(self) -> dict[str, Any]:
        return {"inertia": self.inertia_, "iterations": self.n_iter_}

    def run(self, rows: Rows, state: State | None = None) -> Iterator[State]:
        """The state after each iteration, the last with done = 1; goes on from `state` bit for bit.

        Raises: ValueError when there are fewer rows than clusters.
        """
        k = self.n_clusters
        if k > rows.total:
            raise ValueError(f"{k} clusters for {rows.total:,} rows: lower the number of clusters")
        bound = largest(rows)
        state = state or {
            "means": seeds(rows, k, self.seed),
            "prices": torch.zeros(k, dtype=torch.float64, device=rows.device),
            "labels": torch.full((rows.total,), -1, dtype=torch.int32, device=rows.device),
            "inertia": torch.tensor(torch.inf, dtype=torch.float64),
            "n_iter": torch.tensor(0),
            "done": torch.tensor(False),
        }
        while not state["done"]:
            near = Means(state["means"], rows)
            passes = _LATER if int(state["n_iter"]) else _FIRST
            prices = equal_shares(rows, near, state["prices"], passes, bound)
            labels, inertia = deal(rows, near, prices, bound)
            n_iter = state["n_iter"] + 1
            if torch.equal(labels, state["labels"]) or inertia >= float(state["inertia"]):
                state = state | {"done": torch.tensor(True), "n_iter": n_iter}
            else:
                state = {
                    "means": cluster_means(rows, labels, k, bound),
                    "prices": prices,
                    "labels": labels,
                    "inertia": torch.tensor(inertia, dtype=torch.float64),
                    "n_iter": n_iter,
                    "done": torch.tensor(int(n_iter) >= self.max_iter),
                }
            yield state


def equal_shares(
    rows: Rows, near: Means, prices: Float[Tensor, " K"], passes: int, bound: float
) -> Float[Tensor, " K"]:
    """Prices p at which  Σ_n softmax_k(−(d²_nk + p_k) / τ)  is about I / K for every k, τ falling to its least."""
    typical = _regret(rows, near, bound)
    if not typical:
        return prices
    for step in range(passes):
        cooled = min(1.0, step / (0.7 * _FIRST)) if passes == _FIRST else 1.0
        temperature = typical * _HOTTEST * (_COOLEST / _HOTTEST) ** cooled
        share = ExactSum(prices.shape, float(rows.total), rows.device)
        for _, x in rows.blocks():
            logits = (near.scores(x) + prices.to(x)).div_(-temperature)
            share.add(logits.softmax(1).sum(0, dtype=torch.float64))
        drawn = share.over(rows.sum_).clamp(min=1e-3)
        prices = prices + temperature * (drawn * len(prices) / rows.total).log()
    return prices - prices.mean()


def deal(rows: Rows, near: Means, prices: Float[Tensor, " K"], bound: float) -> tuple[Int[Tensor, " I"], float]:
    """(the cluster of each row, Σ ‖x − μ‖²): cheapest first choices, conflicts to who would regret most."""
    k = len(prices)
    own = slice(rows.first, rows.first + len(rows.source))
    labels = torch.full((rows.total,), -1, dtype=torch.int64, device=rows.device)
    room = torch.full((k,), rows.total // k, dtype=torch.int64, device=rows.device)
    for extra in (0, 1):  # first the equal part, then at most one row more a cluster
        room = room + extra
        for _ in range(_ROUNDS):
            pending = labels[own] < 0
            before = torch.cat([pending.new_zeros(1, dtype=torch.int64), pending.cumsum(0)])
            counts = [(labels < 0).sum()[None], (room > 0).sum()[None], before[:: rows.block], before[-1:]]
            n_left, n_open, *ends = torch.cat(counts).tolist()  # a round's only wait for a GPU
            if not n_left or not n_open:
                break
            choice, regret = _choices(rows, near, prices, _places(pending, ends[-1]), ends, room > 0, n_open)
            choice, regret = rows.together(choice), rows.together(regret)
            order = _places(labels < 0, n_left)
            order = order[regret[order].argsort(descending=True, stable=True)]
            order = order[choice[order].argsort(stable=True)]
            chosen = choice[order]
            wanted = tally(chosen, k)
            place = torch.arange(n_left, device=rows.device) - (wanted.cumsum(0) - wanted)[chosen]
            fits = place < room[chosen]
            labels[order] = torch.where(fits, chosen, -1)
            room = room - torch.zeros_like(room).index_add_(0, chosen, fits.long())
        else:  # what is left after so many rounds are equal rows, for which any order is as good
            left = (labels < 0).nonzero()[: int(room.sum()), 0]
            labels[left] = torch.arange(k, device=rows.device).repeat_interleave(room)[: len(left)]
            room = room - tally(labels[left], k)
    inertia = ExactSum((), 4 * bound**2 * rows.width * rows.total, rows.device)
    for place, x in rows.blocks():
        mean = near.means[labels[own][place]]
        inertia.add((x - mean).square().sum(dtype=torch.float64))
    return labels.int(), float(inertia.over(rows.sum_))


def _choices(
    rows: Rows,
    near: Means,
    prices: Float[Tensor, " K"],
    pending: Int[Tensor, " M"],
    ends: list[int],
    is_open: Bool[Tensor, " K"],
    n_open: int,
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """(the cheapest open cluster of each pending row, how much dearer its next is); 0 for the others.

    `ends`: how many rows are pending before each block, and in all.
    """
    choice = torch.zeros(len(rows.source), dtype=torch.int64, device=rows.device)
    regret = torch.zeros(len(rows.source), dtype=rows.dtype, device=rows.device)
    shut = torch.where(is_open, prices, torch.inf).to(rows.dtype)
    n = 2 if n_open > 1 else 1
    for (place, x), low, high in zip(rows.blocks(), ends, ends[1:], strict=False):
        if low < high:
            asking = pending[low:high] - place.start
            cost, cluster = (near.scores(x[asking]) + shut).topk(n, dim=1, largest=False)
            choice[asking + place.start] = cluster[:, 0]
            regret[asking + place.start] = cost[:, -1] - cost[:, 0]
    return choice, regret


def _places(mask: Bool[Tensor, " n"], m: int) -> Int[Tensor, " m"]:
    """The places of the m true entries; a GPU sorts for them, because nonzero() would wait for their number."""
    if mask.device.type == "cpu":
        return mask.nonzero()[:, 0]
    return mask.byte().argsort(descending=True, stable=True)[:m]


def _regret(rows: Rows, near: Means, bound: float) -> float:
    """How much further the second mean is than the first, on average."""
    if len(near.means) < 2:
        return 0.0
    total = ExactSum((), 4 * bound**2 * rows.width * rows.total, rows.device)
    for _, x in rows.blocks():
        two = near.scores(x).topk(2, dim=1, largest=False).values
        total.add((two[:, 1] - two[:, 0]).sum(dtype=torch.float64))
    return float(total.over(rows.sum_)) / rows.total
