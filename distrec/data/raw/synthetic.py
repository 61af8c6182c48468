"""The built-in catalogue: a world whose tastes, seasons and noise are known because they were planted.

Each user likes a few categories, stays in one for a while, and moves on; inside a category the next
item is often the usual successor of the last one (a sequel, a refill); the calendar pushes some
categories in summer and others in winter; a chosen share of clicks follows nothing at all.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from distrec.knobs import Synthetic

_YEAR = 365 * 86_400
_START = 1_577_836_800  # 2020-01-01
_KINDS = [
    "lamp",
    "kettle",
    "novel",
    "guitar",
    "tent",
    "scarf",
    "puzzle",
    "knife",
    "camera",
    "serum",
    "chair",
    "bicycle",
    "drone",
    "teapot",
    "rug",
    "violin",
]
_LOOKS = [
    "amber",
    "bold",
    "calm",
    "deep",
    "early",
    "fresh",
    "grand",
    "humble",
    "ivory",
    "jolly",
    "keen",
    "light",
    "mellow",
    "noble",
    "olive",
    "plain",
]
_BRANDS = ["Alder", "Birch", "Cedar", "Dogwood", "Elm", "Fir", "Ginkgo", "Hazel", "Ilex", "Juniper"]


@dataclass
class Log:
    """Interactions in order of users and time, and one row of attributes per item."""

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    items: dict[str, Any]


def catalogue(config: Synthetic, rng: np.random.Generator) -> Log:
    """A seeded log of about users × mean_length interactions, no user having an item twice."""
    n_categories = min(config.categories, config.items)
    category = np.sort(rng.integers(0, n_categories, config.items))
    category[:n_categories] = np.arange(n_categories)  # none is empty
    category.sort()
    first = np.searchsorted(category, np.arange(n_categories))
    size = np.bincount(category, minlength=n_categories)
    lengths = np.minimum(5 + rng.geometric(1 / (config.mean_length - 4), config.users) - 1, config.items // 4)
    taste = rng.dirichlet(np.full(n_categories, 0.3), config.users).cumsum(1)
    time = _START + rng.integers(0, 2 * _YEAR, config.users)
    peak = rng.random(n_categories)  # each category's season, as a share of the year
    current = _draw(taste, rng.random(config.users))
    last = np.full(config.users, -1)
    steps: list[tuple[np.ndarray, ...]] = []
    for step in range(lengths.max()):  # over positions; every user at once
        alive = np.flatnonzero(lengths > step)
        time[alive] += rng.exponential(6 * 86_400, len(alive)).astype(np.int64) + 60
        season = np.cos(2 * np.pi * (time[alive] / _YEAR % 1 - peak[current[alive]]))
        leave = rng.random(len(alive)) < 0.15 * (1 - config.seasons * season)
        moved = _draw(taste[alive], rng.random(len(alive)))
        current[alive] = np.where(leave, moved, current[alive])
        chosen = current[alive]
        ranks = _zipf(size[chosen], config.tail, rng)
        follows = (rng.random(len(alive)) < 0.25) & (last[alive] >= 0) & ~leave
        ranks = np.where(follows, (last[alive] - first[chosen] + 1) % size[chosen], ranks)
        item = first[chosen] + ranks
        accident = rng.random(len(alive)) < config.noise
        item = np.where(accident, rng.integers(0, config.items, len(alive)), item)
        last[alive] = np.where(accident, last[alive], item)
        steps.append((alive, item, time[alive].copy()))
    user, item, when = (np.concatenate(parts) for parts in zip(*steps, strict=True))
    order = np.argsort(user, kind="stable")
    user, item, when = user[order], item[order], when[order]
    _, once = np.unique(user * config.items + item, return_index=True)
    once.sort()
    return Log(user[once], item[once], when[once], _attributes(category, rng))


def _draw(cumulative: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """One category a row, from cumulative shares."""
    return np.minimum((cumulative < uniform[:, None]).sum(1), cumulative.shape[1] - 1)


def _zipf(size: np.ndarray, tail: float, rng: np.random.Generator) -> np.ndarray:
    """A rank in 0 … size-1, with P(rank) about (rank+1)^-tail (inverse of the continuous law)."""
    u = rng.random(len(size))
    if abs(tail - 1) < 1e-6:
        rank = (size + 1.0) ** u
    else:
        rank = (1 + u * ((size + 1.0) ** (1 - tail) - 1)) ** (1 / (1 - tail))
    return np.clip(rank.astype(np.int64) - 1, 0, size - 1)


def _attributes(category: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    brand = rng.integers(0, len(_BRANDS), len(category))
    look = rng.integers(0, len(_LOOKS), len(category))
    names = [
        _KINDS[c % len(_KINDS)] + (f" {c // len(_KINDS) + 1}" if c >= len(_KINDS) else "")
        for c in range(category.max() + 1)
    ]
    return {
        "item": np.arange(len(category)),
        "title": [
            f"{_BRANDS[b]} {_LOOKS[k]} {names[c]} no. {i}"
            for i, (b, k, c) in enumerate(zip(brand, look, category, strict=True))
        ],
        "brand": [_BRANDS[b] for b in brand],
        "category": [names[c] for c in category],
    }
