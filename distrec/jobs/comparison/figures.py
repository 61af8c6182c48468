"""The figures of a comparison: each variant's over its seeds, and the paired differences from a reference."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from distrec.engine.evaluation import metrics, outcome, paired
from distrec.engine.evaluation.metrics import Standing
from distrec.jobs.comparison.variants import Run, Variant

METRICS = metrics.NAMES
_CELLS = 2**26  # figures of users held at once


def figures(variants: Sequence[Variant], against: str, metric: str) -> dict[str, Any]:
    """By protocol ("full", new and repeated targets apart, and a sampled one that all runs have): by variant, every metric; the comparisons by `metric`."""
    runs = [run for variant in variants for run in variant.runs]
    names = {"full": ""} | {name: name for name in runs[0].report if name.startswith("sampled_")}
    standings = {
        name: [metrics.standing(run.table, end) for run in runs]
        for name, end in names.items()
        if all(name in run.report for run in runs)
    }
    for name, users in outcome.by_repeat(runs[0].table["repeat"].to_numpy()).items():
        standings[name] = [each.of(users) for each in standings["full"]]
    return {name: _protocol(variants, each, against, metric) for name, each in standings.items()}


def _protocol(variants: Sequence[Variant], standings: list[Standing], against: str, metric: str) -> dict[str, Any]:
    names = [variant.name for variant in variants]
    standings = [
        each.of(~np.isnan(each.better)) for each in standings
    ]  # the same users: their negatives are the data's
    means, draws = _measured(standings, [len(variant.runs) for variant in variants])
    told = {
        name: {each: _over_seeds(means[each][v], draws[each][:, v]) for each in METRICS} for v, name in enumerate(names)
    }
    return {
        "users": len(standings[0].better),
        "variants": told,
        "comparisons": _comparisons(variants, standings, names.index(against), metric, draws[metric]),
    }


def _measured(standings: list[Standing], sizes: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(each seed's mean by variant, bootstrap draws of each variant's mean) by metric; as many metrics at once as memory allows."""
    means: dict[str, Any] = {}
    draws: dict[str, Any] = {}
    at_once = max(1, _CELLS // (len(sizes) * len(standings[0].better)))
    for low in range(0, len(METRICS), at_once):
        names = METRICS[low : low + at_once]
        averaged = np.empty((len(names), len(sizes), len(standings[0].better)))
        for v, own in enumerate(_split(standings, sizes)):
            found = [metrics.per_user(each) for each in own]
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
    standings: list[Standing],
    reference: int,
    metric: str,
    draws: Float[np.ndarray, "R V"],
) -> dict[str, Any]:
    """Every variant but the reference with it."""
    others = [v for v in range(len(variants)) if v != reference]
    if not others:
        return {}
    by_run = [metrics.per_user(each)[metric] for each in standings]
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
