"""The figures of a comparison: each variant's over its seeds, and the paired differences from a reference."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from distrec.engine import metrics, paired
from distrec.jobs.comparison.variants import Run, Variant

METRICS = tuple(metrics.per_user(np.ones(1)))
_CELLS = 2**26  # figures of users held at once


def figures(variants: Sequence[Variant], against: str, metric: str) -> dict[str, Any]:
    """By protocol ("full", and a sampled one that all runs have): by variant, every metric; the comparisons by `metric`."""
    runs = [run for variant in variants for run in variant.runs]
    names = {"full": "rank"} | {name: f"rank_{name}" for name in runs[0].report if name.startswith("sampled_")}
    return {
        name: _protocol(variants, [run.table[column].to_numpy() for run in runs], against, metric)
        for name, column in names.items()
        if all(column in run.table.columns for run in runs)
    }


def _protocol(
    variants: Sequence[Variant], ranks: list[Float[np.ndarray, " U"]], against: str, metric: str
) -> dict[str, Any]:
    sizes = [len(variant.runs) for variant in variants]
    ends = np.cumsum(sizes)
    means, draws = _measured(ranks, sizes)
    told: dict[str, Any] = {}
    for v, variant in enumerate(variants):
        own = {name: values[ends[v] - sizes[v] : ends[v]] for name, values in means.items()}
        told[variant.name] = {name: _over_seeds(values, draws[name][:, v]) for name, values in own.items()}
    names = [variant.name for variant in variants]
    each = [metrics.per_user(rank)[metric] for rank in ranks]
    averaged = np.stack([np.mean(part, 0) for part in _split(each, sizes)])
    spread = draws[metric] - draws[metric][:, [names.index(against)]]
    return {
        "users": len(ranks[0]),
        "variants": told,
        "comparisons": _comparisons(names, averaged, spread, names.index(against)),
    }


def _measured(ranks: list[Float[np.ndarray, " U"]], sizes: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(each run's mean, bootstrap draws of each variant's mean) by metric; as many metrics at once as memory allows."""
    means: dict[str, Any] = {}
    draws: dict[str, Any] = {}
    at_once = max(1, _CELLS // (len(ranks) * len(ranks[0])))
    for low in range(0, len(METRICS), at_once):
        names = METRICS[low : low + at_once]
        values = np.empty((len(names), len(ranks), len(ranks[0])))
        for s, rank in enumerate(ranks):
            found = metrics.per_user(rank)
            values[:, s] = [found[name] for name in names]
        drawn = paired.resampled(values, sizes)
        for i, name in enumerate(names):
            means[name], draws[name] = values[i].mean(1), drawn[:, i]
    return means, draws


def _over_seeds(values: Float[np.ndarray, " S"], draws: Float[np.ndarray, " R"]) -> dict[str, Any]:
    return {
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if len(values) > 1 else None,
        "interval": paired.interval(draws),
        "seeds": values.tolist(),
    }


def _comparisons(
    names: Sequence[str], averaged: Float[np.ndarray, "V U"], draws: Float[np.ndarray, "R V"], reference: int
) -> dict[str, Any]:
    """Every variant but the reference with it."""
    others = [v for v in range(len(names)) if v != reference]
    if not others:
        return {}
    differences = averaged[others] - averaged[reference]
    p = paired.sign_flip(differences)
    table: dict[str, Any] = {}
    for v, difference, own, adjusted in zip(others, differences, p, paired.holm(p), strict=True):
        better, worse, equal = paired.counts(difference)
        mean, before = float(difference.mean()), float(averaged[reference].mean())
        table[names[v]] = {
            "difference": mean,
            "relative": mean / before if before else None,
            "interval": paired.interval(draws[:, v]),
            "p": float(own),
            "p_holm": float(adjusted),
            "better": better,
            "worse": worse,
            "equal": equal,
            "std": float(difference.std(ddof=1)) if len(difference) > 1 else None,
            "detectable": paired.detectable(difference) if len(difference) > 1 else None,
        }
    return table


def _split(values: list[Any], sizes: Sequence[int]) -> list[list[Any]]:
    ends = np.cumsum(sizes)
    return [values[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def seeds_of(runs: Sequence[Run]) -> str:
    return ", ".join(str(run.config.seed) for run in runs)
