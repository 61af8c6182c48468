"""The figures of a comparison: each variant's over its seeds, and the paired differences from a reference."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from distrec.engine.evaluation import metrics, paired
from distrec.jobs.comparison.variants import Run, Variant

METRICS = tuple(metrics.per_user(np.ones(1)))
_CELLS = 2**26  # figures of users held at once


def figures(variants: Sequence[Variant], against: str, metric: str) -> dict[str, Any]:
    """By protocol ("full", and a sampled one that all runs have): by variant, every metric; the comparisons by `metric`."""
    runs = [run for variant in variants for run in variant.runs]
    names = {"full": "rank"} | {name: f"rank_{name}" for name in runs[0].report if name.startswith("sampled_")}
    return {
        name: _protocol(variants, _with_a_rank([run.table[column].to_numpy() for run in runs]), against, metric)
        for name, column in names.items()
        if all(column in run.table.columns for run in runs)
    }


def _with_a_rank(ranks: list[Float[np.ndarray, " U"]]) -> list[Float[np.ndarray, " n"]]:
    """The ranks of the users who have one in every run: of a sampled protocol not all do."""
    has = ~np.logical_or.reduce([np.isnan(rank) for rank in ranks])
    return [rank[has] for rank in ranks]


def _protocol(
    variants: Sequence[Variant], ranks: list[Float[np.ndarray, " U"]], against: str, metric: str
) -> dict[str, Any]:
    names = [variant.name for variant in variants]
    means, draws = _measured(ranks, [len(variant.runs) for variant in variants])
    told = {
        name: {each: _over_seeds(means[each][v], draws[each][:, v]) for each in METRICS} for v, name in enumerate(names)
    }
    return {
        "users": len(ranks[0]),
        "variants": told,
        "comparisons": _comparisons(variants, ranks, names.index(against), metric, draws[metric]),
    }


def _measured(ranks: list[Float[np.ndarray, " U"]], sizes: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(each seed's mean by variant, bootstrap draws of each variant's mean) by metric; as many metrics at once as memory allows."""
    means: dict[str, Any] = {}
    draws: dict[str, Any] = {}
    at_once = max(1, _CELLS // (len(sizes) * len(ranks[0])))
    for low in range(0, len(METRICS), at_once):
        names = METRICS[low : low + at_once]
        averaged = np.empty((len(names), len(sizes), len(ranks[0])))
        for v, own in enumerate(_split(ranks, sizes)):
            found = [metrics.per_user(rank) for rank in own]
            for i, name in enumerate(names):
                averaged[i, v] = np.mean([each[name] for each in found], 0)
                means.setdefault(name, []).append(np.array([each[name].mean() for each in found]))
        drawn = paired.resampled(averaged)
        draws |= {name: drawn[:, i] for i, name in enumerate(names)}
    return means, draws


def _over_seeds(values: Float[np.ndarray, " S"], draws: Float[np.ndarray, " R"]) -> dict[str, Any]:
    mean = float(values.mean())
    return {
        "mean": mean,
        "std": float(values.std(ddof=1)) if len(values) > 1 else None,
        "interval": paired.interval(mean, draws, [values]),
        "seeds": values.tolist(),
    }


def _comparisons(
    variants: Sequence[Variant],
    ranks: list[Float[np.ndarray, " U"]],
    reference: int,
    metric: str,
    draws: Float[np.ndarray, "R V"],
) -> dict[str, Any]:
    """Every variant but the reference with it."""
    others = [v for v in range(len(variants)) if v != reference]
    if not others:
        return {}
    by_run = [metrics.per_user(rank)[metric] for rank in ranks]
    values = [np.stack(own) for own in _split(by_run, [len(variant.runs) for variant in variants])]
    averaged = np.stack([own.mean(0) for own in values])
    differences = averaged[others] - averaged[reference]
    p = paired.sign_flip(differences)
    table: dict[str, Any] = {}
    for v, difference, own, adjusted in zip(others, differences, p, paired.holm(p), strict=True):
        better, worse, equal = paired.counts(difference)
        mean, before = float(difference.mean()), float(averaged[reference].mean())
        of_seeds = values[v].mean(1), values[reference].mean(1)
        is_paired = _numbers(variants[v]) == _numbers(variants[reference])
        seeds = [of_seeds[0] - of_seeds[1]] if is_paired else of_seeds
        table[variants[v].name] = {
            "difference": mean,
            "relative": mean / before if before else None,
            "interval": paired.interval(mean, draws[:, v] - draws[:, reference], seeds),
            "p": float(own),
            "p_holm": float(adjusted),
            "better": better,
            "worse": worse,
            "equal": equal,
            "std": float(difference.std(ddof=1)) if len(difference) > 1 else None,
            "detectable": paired.detectable(difference) if len(difference) > 1 else None,
        }
    return table


def _numbers(variant: Variant) -> list[int]:
    return [run.config.seed for run in variant.runs]


def _split(values: list[Any], sizes: Sequence[int]) -> list[list[Any]]:
    ends = np.cumsum(sizes)
    return [values[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def seeds_of(runs: Sequence[Run]) -> str:
    return ", ".join(str(run.config.seed) for run in runs)
