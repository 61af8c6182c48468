"""Whether items that stand near each other in a history belong together, by what other users had.

    c(i, j): how many other users have both;   by lag:  mean over users and places of c(item_t, item_{t+lag})

Shapes: I items, N interactions, U users, P pairs, T places.
"""

import numpy as np
import torch
from jaxtyping import Float, Integer
from scipy.sparse import csr_array
from torch import Tensor

LAGS = (1, 2, 3, 5, 8, 13, 21)


def between(W: csr_array, a: Integer[np.ndarray, "*P"], b: Integer[np.ndarray, "*P"]) -> Float[np.ndarray, "*P"]:
    """The weights of some pairs of items, 0 where there is no edge."""
    found = W[a.ravel(), b.ravel()]
    values = found.toarray() if hasattr(found, "toarray") else np.asarray(found)
    return values.astype(np.float64).reshape(a.shape)


def subgraphs(W: csr_array, items: Integer[Tensor, "B T"], is_own: bool) -> Float[Tensor, "B T T"]:
    """The graph between the places of each history; places of the same item have no edge.

    `is_own`: leave the users' own counts in: W holds all users' (binary, without a window), these among them, and then
    every one of these graphs is complete.
    """
    own = items.numpy(force=True)
    a, b = np.broadcast_arrays(own[:, :, None], own[:, None])
    found = between(W, a, b) - (0 if is_own else 1)
    return torch.from_numpy(np.where(a == b, 0, found.clip(min=0)))


def by_lag(
    W: csr_array, item: Integer[np.ndarray, " N"], start: Integer[np.ndarray, " _"], lag: int
) -> tuple[Float[np.ndarray, " U"], Integer[np.ndarray, " U"]]:
    """(sum of c over a user's pairs at this lag, number of such pairs); pairs of an item with itself do not count.

    `W`: users that have both, of the same sequences.
    """
    place = np.arange(len(item) - lag)
    user = np.repeat(np.arange(len(start) - 1), np.diff(start))
    a, b = item[place], item[place + lag]
    counts = (user[place] == user[place + lag]) & (a != b)
    of = user[place][counts]
    n_users = len(start) - 1
    found = between(W, a[counts], b[counts]) - 1
    return np.bincount(of, found, n_users).astype(np.float64), np.bincount(of, minlength=n_users)


def at_random(
    W: csr_array, item: Integer[np.ndarray, " N"], start: Integer[np.ndarray, " _"], seed: int, draws: int = 8
) -> tuple[Float[np.ndarray, " U"], Integer[np.ndarray, " U"]]:
    """The same for neighbours in shuffled histories: what order has nothing to do with."""
    total, n = np.zeros(len(start) - 1), np.zeros(len(start) - 1, np.int64)
    for draw in range(draws):
        found = by_lag(W, item[shuffled(start, np.random.default_rng([seed, draw]))], start, 1)
        total, n = total + found[0], n + found[1]
    return total, n


def shuffled(start: Integer[np.ndarray, " _"], rng: np.random.Generator) -> Integer[np.ndarray, " N"]:
    """A permutation of places that leaves every history in its stretch."""
    n = int(start[-1])
    user = np.repeat(np.arange(len(start) - 1), np.diff(start))
    return np.lexsort((rng.random(n), user))


def shuffled_ties(
    start: Integer[np.ndarray, " _"], time: Integer[np.ndarray, " N"], rng: np.random.Generator
) -> Integer[np.ndarray, " N"]:
    """A permutation of places that moves interactions among those of the same user and time alone."""
    n = int(start[-1])
    user = np.repeat(np.arange(len(start) - 1), np.diff(start))
    return np.lexsort((rng.random(n), time[:n], user))
