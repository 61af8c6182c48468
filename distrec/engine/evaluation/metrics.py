"""HR@K, NDCG@K and MRR of targets among items, some of which may have their very score, with bootstrap intervals.

Shapes: U users, R resamples.
"""

from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy.special import digamma

CUTOFFS = (1, 5, 10, 20)
TIES = "expectation over the order of ties"
_DISCOUNTS = np.r_[0, np.cumsum(1 / np.log2(1 + np.arange(1, 1 + CUTOFFS[-1])))]  # of the first n ranks together


class Standing(NamedTuple):
    """Where each user's target stands: its rank is any of better + 1 … better + ties + 1, each as likely."""

    better: Float[
        np.ndarray, " U"
    ]  # whole: how many items have a higher score; inf where a model does not list the target
    ties: Float[np.ndarray, " U"]  # whole: how many others have its very score

    @property
    def rank(self) -> Float[np.ndarray, " U"]:
        """The expected rank, from 1."""
        return 1 + self.better + self.ties / 2

    def of(self, users: np.ndarray) -> "Standing":
        """The standing of some users."""
        return Standing(self.better[users], self.ties[users])

    def columns(self, name: str = "") -> dict[str, pl.Series]:
        """The columns `rank`, `better` and `ties` of a table, with _NAME; `better` is null where nothing is listed, all
        three where nothing was measured (NaN)."""
        end, is_known = f"_{name}" if name else "", ~np.isnan(self.better)
        whole = [pl.Series(np.where(np.isfinite(each), each, -1).astype(np.int64)) for each in self]
        better, ties = (each.set(each < 0, None) for each in whole)
        rank = pl.Series(self.rank).set(pl.Series(~is_known), None)
        return {f"rank{end}": rank, f"better{end}": better, f"ties{end}": ties}


def standing(table: pl.DataFrame, name: str = "") -> Standing:
    """What `columns` wrote; users of whom nothing was measured have NaN."""
    end = f"_{name}" if name else ""
    rank = table[f"rank{end}"]
    lost = np.where(rank.is_null().to_numpy(), np.nan, np.inf)
    better, ties = (table[f"{each}{end}"].cast(pl.Float64).to_numpy() for each in ("better", "ties"))
    return Standing(np.where(np.isnan(better), lost, better), ties)


def per_user(standing: Standing) -> dict[str, Float[np.ndarray, " U"]]:
    """The exact expectation of each metric when every order of the target among its ties is as likely; one relevant item a user.

    With g better items, t ties, C(n) = Σ_{r ≤ n} 1 / log₂(1 + r) and H(n) = Σ_{r ≤ n} 1 / r:

        HR@K = |{g + 1 … g + t + 1} ∩ {1 … K}| / (t + 1)     NDCG@K = (C(min(K, g + t + 1)) - C(min(K, g))) / (t + 1)
        MRR = (H(g + t + 1) - H(g)) / (t + 1)

    Without ties these are [rank ≤ K], HR@K / log₂(1 + rank) and 1 / rank.
    """
    first, orders = 1 + standing.better, 1 + standing.ties
    is_alone = orders == 1
    gain = 1 / np.log2(1 + first)
    table: dict[str, np.ndarray] = {}
    for k in CUTOFFS:
        low, high = (np.minimum(edge, k).astype(np.int64) for edge in (standing.better, standing.better + orders))
        table[f"hr@{k}"] = within(standing, k)
        table[f"ndcg@{k}"] = np.where(
            is_alone, np.where(first <= k, gain, 0.0), (_DISCOUNTS[high] - _DISCOUNTS[low]) / orders
        )
    several = np.where(is_alone, 1, first)  # digamma(inf) - digamma(inf) is no number
    table["mrr"] = np.where(is_alone, 1 / first, (digamma(several + orders) - digamma(several)) / orders)
    return table


def within(standing: Standing, k: float) -> Float[np.ndarray, " U"]:
    """The probability that the target is among the first k, which is HR@K."""
    low, high = np.minimum(standing.better, k), np.minimum(standing.better + 1 + standing.ties, k)
    return (high - low) / (1 + standing.ties)


NAMES = tuple(per_user(Standing(np.zeros(1), np.zeros(1))))


def summarise(standing: Standing, bootstrap: int = 0, seed: int = 0) -> dict[str, float | list[float]]:
    """The mean of each metric over users; with `bootstrap` resamples also its 95 % interval as NAME_ci.

    Users who stand alike are exchangeable, so resampling users is drawing how often each distinct standing occurs:
    exact, and as cheap for a million users as for a thousand.
    """
    key = standing.better * (1 + standing.ties.max()) + standing.ties  # sorted: sums run in one order everywhere
    _, users, counts = np.unique(key, return_index=True, return_counts=True)
    names, values = zip(*per_user(standing.of(users)).items(), strict=True)
    matrix = np.stack(values, 1)
    n_users = counts.sum()
    result: dict[str, float | list[float]] = dict(zip(names, (counts @ matrix / n_users).tolist(), strict=True))
    if bootstrap:
        rng = np.random.default_rng(seed)
        rows = max(1, 10_000_000 // len(users))
        draws = [
            rng.multinomial(n_users, counts / n_users, min(rows, bootstrap - low)) @ matrix / n_users
            for low in range(0, bootstrap, rows)
        ]
        low, high = np.quantile(np.concatenate(draws), [0.025, 0.975], axis=0)
        result |= {f"{name}_ci": [float(a), float(b)] for name, a, b in zip(names, low, high, strict=True)}
    return result
