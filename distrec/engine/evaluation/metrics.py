"""HR@K, NDCG@K and MRR from ranks, with bootstrap intervals.

Shapes: U users, R resamples.
"""

import numpy as np
from jaxtyping import Float

CUTOFFS = (1, 5, 10, 20)


def per_user(rank: Float[np.ndarray, " U"]) -> dict[str, Float[np.ndarray, " U"]]:
    """HR@K = [rank < K + 1], NDCG@K = HR@K / log₂(1 + rank), MRR = 1 / rank; one relevant item a user.

    Deviation: an expected rank between K and K + 1 (a tie across the border) counts as inside, as it does
    for whoever counts ranks from 0 and asks for rank < K.
    """
    gain = 1 / np.log2(1 + rank)
    table: dict[str, np.ndarray] = {}
    for k in CUTOFFS:
        table[f"hr@{k}"] = (rank < k + 1).astype(np.float64)
        table[f"ndcg@{k}"] = np.where(rank < k + 1, gain, 0.0)
    table["mrr"] = 1 / rank
    return table


def summarise(rank: Float[np.ndarray, " U"], bootstrap: int = 0, seed: int = 0) -> dict[str, float | list[float]]:
    """The mean of each metric over users; with `bootstrap` resamples also its 95 % interval as NAME_ci.

    Users of equal rank are exchangeable, so resampling users is drawing how often each distinct rank occurs:
    exact, and as cheap for a million users as for a thousand.
    """
    ranks, counts = np.unique(rank, return_counts=True)  # sorted: sums run in one order everywhere
    names, values = zip(*per_user(ranks).items(), strict=True)
    matrix = np.stack(values, 1)
    n_users = counts.sum()
    result: dict[str, float | list[float]] = dict(zip(names, (counts @ matrix / n_users).tolist(), strict=True))
    if bootstrap:
        rng = np.random.default_rng(seed)
        rows = max(1, 10_000_000 // len(ranks))
        draws = [
            rng.multinomial(n_users, counts / n_users, min(rows, bootstrap - low)) @ matrix / n_users
            for low in range(0, bootstrap, rows)
        ]
        low, high = np.quantile(np.concatenate(draws), [0.025, 0.975], axis=0)
        result |= {f"{name}_ci": [float(a), float(b)] for name, a, b in zip(names, low, high, strict=True)}
    return result
