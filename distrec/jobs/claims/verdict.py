"""What the runs say to each thing that a claim says: confirmed, refuted, or undecided at this power."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from distrec.engine.evaluation import metrics, outcome, paired
from distrec.jobs.claims.job import Experiment, Judge
from distrec.jobs.claims.runs import Planned

CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "undecided"


class Finding(NamedTuple):
    """A quantity with its 95 % interval (None where it has none), and what it says."""

    judge: Judge
    value: float
    interval: tuple[float, float] | None
    verdict: str


def findings(experiment: Experiment, runs: Sequence[Planned]) -> list[Finding]:
    """With 95 % intervals: of metrics over users and seeds, of figures over seeds; of one seed none."""
    by_name = {name: [run for run in runs if run.name == name] for name in experiment.runs}
    found = []
    for judge in experiment.judge:
        value, interval = (_metric if judge.metric else _figure)(judge, by_name)
        found.append(Finding(judge, value, interval, decided(judge, value, interval)))
    return found


def check(experiment: Experiment, run: Planned) -> None:
    """Raise ValueError when a figure that is asked of a run is not in its analysis."""
    for judge in experiment.judge:
        if judge.figure and run.name in (judge.of, judge.versus):
            _quantity(run, judge)


def decided(judge: Judge, value: float, interval: tuple[float, float] | None) -> str:
    """Confirmed where the whole interval is on the claim's side of its bound, refuted where it is on the other."""
    if interval is None or not np.isfinite(value):
        return UNDECIDED
    low, high = interval
    if judge.above is not None:
        return CONFIRMED if low > judge.above else REFUTED if high <= judge.above else UNDECIDED
    assert judge.below is not None
    return CONFIRMED if high < judge.below else REFUTED if low >= judge.below else UNDECIDED


def overall(found: Sequence[Finding]) -> str:
    """Refuted by one, confirmed by all; asides do not count."""
    verdicts = [each.verdict for each in found if not each.judge.aside]
    if REFUTED in verdicts:
        return REFUTED
    return CONFIRMED if set(verdicts) == {CONFIRMED} else UNDECIDED


def _metric(judge: Judge, by_name: Mapping[str, Sequence[Planned]]) -> tuple[float, tuple[float, float] | None]:
    assert judge.metric is not None
    names = [judge.of, *([judge.versus] if judge.versus else [])]
    return over_users_and_seeds(
        judge, np.stack([[_users(run, judge.metric) for run in by_name[name]] for name in names])
    )


def over_users_and_seeds(judge: Judge, values: Float[np.ndarray, "V S U"]) -> tuple[float, tuple[float, float] | None]:
    """(the quantity, its 95 % interval; of one seed none); runs of the same seed go together."""
    seeds = np.array([_told(judge, values[:, s].mean(1)) for s in range(values.shape[1])])
    value = _told(judge, values.mean((1, 2)))
    if len(seeds) < 2:
        return value, None
    draws = np.array([_told(judge, draw) for draw in paired.resampled(values.mean(1)[None])[:, 0]])
    return value, paired.interval(value, draws, [seeds])


def _told(judge: Judge, means: Float[np.ndarray, " V"]) -> float:
    """The quantity from the mean of the run, and of the one it is held against."""
    if judge.versus is None:
        return float(means[0])
    if not judge.ratio:
        return float(means[0] - means[1])
    return float(means[0] / means[1]) if means[1] else math.nan


def _users(run: Planned, metric: str) -> np.ndarray:
    return metrics.per_user(metrics.standing(outcome.ranks(run.folder).sort("user")))[metric]


def _figure(judge: Judge, by_name: Mapping[str, Sequence[Planned]]) -> tuple[float, tuple[float, float] | None]:
    """Runs of the same seed are compared."""
    own = np.array([_quantity(run, judge) for run in by_name[judge.of]])
    if judge.versus:
        other = np.array([_quantity(run, judge) for run in by_name[judge.versus]])
        with np.errstate(divide="ignore", invalid="ignore"):
            own = own / other if judge.ratio else own - other
    mean = float(own.mean())
    if len(own) < 2 or not np.isfinite(mean) or not np.ptp(own):
        return mean, None
    half = float(stats.t.ppf(0.975, len(own) - 1) * own.std(ddof=1) / np.sqrt(len(own)))
    return mean, (mean - half, mean + half)


def _quantity(run: Planned, judge: Judge) -> float:
    figures = json.loads((run.folder / "analysis" / "analysis.json").read_text(encoding="utf-8"))
    assert judge.figure is not None
    value = _at(figures, judge.figure, judge)
    if judge.part:
        part = _at(figures, judge.part, judge)
        value = value / part if part else np.nan
    return value


def _at(figures: Any, path: Sequence[str], judge: Judge) -> float:
    """Raises: ValueError naming the key that an analysis lacks."""
    place = figures
    for key in path:
        try:
            place = place[int(key)] if isinstance(place, list) else place[key]
        except (KeyError, IndexError, ValueError, TypeError):
            known = ", ".join(map(str, place)) if isinstance(place, dict) else type(place).__name__
            raise ValueError(f"experiment.judge, {judge.that!r}: no figure {' → '.join(path)} ({key!r} is none of {known})") from None  # fmt: skip
    if not isinstance(place, int | float):
        raise ValueError(f"experiment.judge, {judge.that!r}: {' → '.join(path)} is no number")
    return float(place)
