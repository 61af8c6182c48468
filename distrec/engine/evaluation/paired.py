"""Is one model better than another on the same test users?  Intervals, a randomisation test, and what it could have found.

Shapes: U users, S seeds, V variants, M metrics, C comparisons, R draws.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

RESAMPLES = 2_000  # of intervals
DRAWS = 10_000  # of signs
MANY_USERS = 50_000  # beyond, sums over users are taken as normal
_CELLS = 2**22  # numbers drawn at once


def resampled(values: Float[np.ndarray, "M V U"], draws: int = RESAMPLES, seed: int = 0) -> Float[np.ndarray, "R M V"]:
    """Bootstrap draws of each variant's mean over users, the same users for all variants: differences stay paired.

    Deviation: for more than MANY_USERS users the mean over drawn users is drawn from its normal limit, N(mean, Σ / U) with
    Σ the variants' covariance over users.
    """
    rng = np.random.default_rng([seed, 0])
    return _limit(values, draws, rng) if values.shape[2] > MANY_USERS else _drawn(values, draws, rng)


def interval(
    value: float, draws: Float[np.ndarray, " R"], seeds: Sequence[Float[np.ndarray, " _"]] = (), level: float = 0.95
) -> tuple[float, float]:
    """Of a quantity for which users and seeds were drawn.

    `draws`: the quantity of resampled users, seeds averaged.  `seeds`: its values by seed; of a sum of independent parts
    those of each.  A part of one seed shows no variance; where there is no other, the interval is the middle of the draws.

    On the wide side: what a seed does to some users is in both terms.

        Var = Var draws + Σ s² / S,   value ± t · Var^½,   t Student's with Welch and Satterthwaite's degrees of freedom
    """
    parts = [(each.var(ddof=1) / len(each), len(each) - 1) for each in seeds if len(each) > 1]
    total = draws.var(ddof=1) + sum(variance for variance, _ in parts)
    if not parts or not total:
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)
    freedom = total**2 / max(sum(variance**2 / n for variance, n in parts), 1e-300)
    half = float(stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(total))
    return value - half, value + half


def sign_flip(differences: Float[np.ndarray, "C U"], draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, " C"]:
    """p of each mean difference, two-sided: how often |Σ ±d| ≥ |Σ d| when each user's sign is a coin's.

    p = (1 + #) / (1 + draws); all 2^U patterns where they are no more than `draws`; for more than MANY_USERS users the
    normal limit, Σ ±d ~ N(0, Σ d²).  The draws of a seed are the same for all comparisons.
    """
    n_users = differences.shape[1]
    total, size = differences.sum(1), np.abs(differences).sum(1)
    if n_users > MANY_USERS:
        spread = np.sqrt(np.square(differences).sum(1))
        return 2 * stats.norm.sf(np.abs(total) / np.where(spread > 0, spread, 1))
    is_whole = 2**n_users <= draws
    patterns = 2**n_users if is_whole else draws
    rng, reached = np.random.default_rng([seed, 2]), np.zeros(len(differences), np.int64)
    rows = 8 * max(1, _CELLS // n_users // 8)  # a byte holds eight coins
    for low in range(0, patterns, rows):
        n = min(rows, patterns - low)
        coins = _patterns(low, n, n_users) if is_whole else _coins(rng, n, n_users)
        sums = 2 * (coins @ differences.T) - total
        reached += (np.abs(sums) >= np.abs(total) - 1e-9 * size).sum(0)  # sums of equal numbers differ by rounding
    return reached / patterns if is_whole else (1 + reached) / (1 + patterns)


def holm(p: Float[np.ndarray, " C"]) -> Float[np.ndarray, " C"]:
    """p of each comparison, adjusted so that any false finding among all of them is as rare as one test's (Holm 1979).

    The i-th smallest of C is multiplied by C − i + 1; none becomes smaller than one before it, or larger than 1.
    """
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(steps, 1)[np.argsort(order, kind="stable")]


def counts(difference: Float[np.ndarray, " U"]) -> tuple[int, int, int]:
    """How many users are better off, worse off, neither; a difference of rounding is none."""
    better, worse = int((difference > 1e-12).sum()), int((difference < -1e-12).sum())
    return better, worse, len(difference) - better - worse


def detectable(difference: Float[np.ndarray, " U"], level: float = 0.05, power: float = 0.8) -> float:
    """The smallest true mean difference that a test of this level finds with this power among as many users.

    (z of 1 − level / 2  +  z of power) · std of the differences / √U
    """
    z = stats.norm.ppf(1 - level / 2) + stats.norm.ppf(power)
    return float(z * difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else float("nan")


def _drawn(values: Float[np.ndarray, "M V U"], draws: int, rng: np.random.Generator) -> Float[np.ndarray, "R M V"]:
    """Each variant's mean over drawn users."""
    m, v, n_users = values.shape
    columns = values.reshape(m * v, n_users).T
    rows, means = max(1, _CELLS // n_users), []
    for low in range(0, draws, rows):
        n = min(rows, draws - low)
        places = rng.integers(n_users, size=(n, n_users)) + n_users * np.arange(n)[:, None]
        often = np.bincount(places.ravel(), minlength=n * n_users).reshape(n, n_users)
        means.append(often.astype(np.float64) @ columns / n_users)
    return np.concatenate(means).reshape(draws, m, v)


def _limit(values: Float[np.ndarray, "M V U"], draws: int, rng: np.random.Generator) -> Float[np.ndarray, "R M V"]:
    m, v, n_users = values.shape
    means = np.empty((draws, m, v))
    for i, each in enumerate(values):
        weight, axes = np.linalg.eigh(np.atleast_2d(np.cov(each, bias=True)) / n_users)
        root = (axes * np.sqrt(np.maximum(weight, 0))) @ axes.T
        means[:, i] = each.mean(1) + rng.standard_normal((draws, v)) @ root
    return means


def _coins(rng: np.random.Generator, n: int, n_users: int) -> Float[np.ndarray, "R U"]:
    width = -(-n_users // 8)
    drawn = rng.integers(256, size=(n, width), dtype=np.uint8)
    return np.unpackbits(drawn, axis=1, count=n_users).astype(np.float64)


def _patterns(low: int, n: int, n_users: int) -> Float[np.ndarray, "R U"]:
    numbers: Int[np.ndarray, " R"] = np.arange(low, low + n)
    return ((numbers[:, None] >> np.arange(n_users)) & 1).astype(np.float64)
