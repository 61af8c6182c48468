"""An experiment's file: a claim, the runs that can decide it, and what must come out.

experiment:
  claim: …                        what is said, and by whom (source)
  runs:                           name → what is different from the rest of the file
    plain: {model: {tfm: {mode: none}}}
    filtered: {model: {tfm: {mode: causal}}}
  seeds: [0, 1, 2]
  judge:                          each with `that` (in words), a quantity and a bound
    - {that: …, of: filtered, versus: plain, metric: ndcg@10, above: 0}
    - {that: …, of: plain, figure: [spectra, low, published, lost], above: 0.7}

A quantity is a metric of the test split (over all items), or a figure of `distrec analyze`; with `versus` the difference to
another run, with `ratio` the quotient.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from distrec import config as cfg
from distrec import knobs
from distrec.hints import Like
from distrec.jobs.analysis.parts import PARTS
from distrec.jobs.comparison.figures import METRICS
from distrec.settings import Schema, merge


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    """What is asked of one quantity.   `aside`: told, but the verdict does not hang on it."""

    __pydantic_config__: ClassVar[ConfigDict] = knobs.STRICT
    that: str
    of: str
    versus: str | None = None
    ratio: bool = False
    metric: str | None = None
    figure: tuple[str, ...] | None = None
    part: tuple[str, ...] | None = None  # another figure of the same run, by which `figure` is divided
    above: float | None = None
    below: float | None = None
    aside: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """The section `experiment`."""

    __pydantic_config__: ClassVar[ConfigDict] = knobs.STRICT
    claim: str
    source: str
    runs: dict[str, Annotated[dict[str, Any], Like(cfg.Config)]]
    judge: Annotated[tuple[Judge, ...], Field(min_length=1)]
    seeds: Annotated[tuple[knobs.Count, ...], Field(min_length=1)] = (0, 1, 2)
    against: str | None = None  # the run that the others are compared with; None: the first
    metric: str = "ndcg@10"
    jobs: knobs.AtLeastOne = 1  # processes at a time, each with its share of the cores
    root: Path = Path("experiments")  # runs lie there for all experiments, each once
    out: Path | None = None  # the verdict; None: under root, by the file's name


@dataclass(frozen=True, kw_only=True, slots=True)
class Job(cfg.Config):
    """A config, and the claim that is tried with it."""

    __pydantic_config__: ClassVar[ConfigDict] = knobs.STRICT
    experiment: Experiment = field(kw_only=True)


def load(args: list[str]) -> Job:
    """Raises: ValueError, one line: a wrong key or value, a run that is no config, a judge that asks for nothing that there is."""
    job = Schema(Job, cfg.CHOICES).load(args)
    own = job.experiment
    if not own.runs:
        raise ValueError("experiment.runs is empty: give each run a name, and what it differs in")
    if job.out is not None:
        raise ValueError("an experiment's folder is experiment.out=DIR; each of its runs has its own")
    if len(set(own.seeds)) < len(own.seeds):
        raise ValueError(f"experiment.seeds={list(own.seeds)}: a seed stands twice")
    _check_runs(job)
    for name in [own.against, *(judge.of for judge in own.judge), *(judge.versus for judge in own.judge)]:
        if name is not None and name not in own.runs:
            raise ValueError(f"experiment has no run {name!r}: {', '.join(own.runs)}")
    for judge in own.judge:
        _check(judge)
    if all(judge.aside for judge in own.judge):
        raise ValueError("experiment.judge holds asides alone: nothing would decide the claim")
    if own.metric not in METRICS:
        raise ValueError(f"experiment.metric={own.metric}: it is one of {', '.join(METRICS)}")
    return job


def _check_runs(job: Job) -> None:
    """Raise ValueError naming the first run that is no config, that of another, or measured otherwise."""
    own = job.experiment
    known: dict[str, cfg.Config] = {}
    for name, different in own.runs.items():
        if not name:
            raise ValueError("experiment.runs: a run has no name")
        if other := [key for key in ("seed", "out") if key in different]:
            raise ValueError(
                f"experiment.runs, {name}: {other[0]} is the experiment's to give (experiment.seeds, experiment.root)"
            )
        try:
            found = config(job, name, own.seeds[0])
        except ValueError as error:
            raise ValueError(f"experiment.runs, {name}: {error}") from None
        if same := [other for other, config_ in known.items() if config_ == found]:
            raise ValueError(f"experiment.runs, {name}: the same config as {same[0]}")
        known[name] = found
        first = next(iter(known.values()))
        for section in ("data", "score"):
            if getattr(found, section) != getattr(first, section):
                raise ValueError(
                    f"experiment.runs, {name}: another {section} than {next(iter(own.runs))}: they could not be compared"
                )


def _check(judge: Judge) -> None:
    where = f"experiment.judge, {judge.that!r}"
    if (judge.metric is None) == (judge.figure is None):
        raise ValueError(f"{where}: it is about a metric or a figure, one of them")
    if (judge.above is None) == (judge.below is None):
        raise ValueError(f"{where}: it is above or below a number, one of them")
    if judge.metric is not None and judge.metric not in METRICS:
        raise ValueError(f"{where}: metric {judge.metric} is none of {', '.join(METRICS)}")
    if judge.part is not None and judge.figure is None:
        raise ValueError(f"{where}: part divides a figure")
    if judge.part is not None and (not judge.part or judge.part[0] not in PARTS):
        raise ValueError(f"{where}: part begins with a part of analyze, one of {', '.join(PARTS)}")
    if not all(math.isfinite(bound) for bound in (judge.above, judge.below) if bound is not None):
        raise ValueError(f"{where}: above and below are finite numbers")
    if judge.figure is not None and (not judge.figure or judge.figure[0] not in PARTS):
        raise ValueError(f"{where}: figure begins with a part of analyze, one of {', '.join(PARTS)}")
    if judge.ratio and judge.versus is None:
        raise ValueError(f"{where}: a ratio is to another run (versus)")


def config(job: Job, name: str, seed: int) -> cfg.Config:
    """That of one run: what the file shares, and what the run changes of it."""
    tree = cfg.shared(job)
    merge(tree, job.experiment.runs[name], cfg.CHOICES)
    return cfg.load([], {**tree, "seed": seed})


def parts(job: Job) -> list[str]:
    """The parts of analyze that its judges read."""
    paths = [path for judge in job.experiment.judge for path in (judge.figure, judge.part) if path]
    return [name for name in PARTS if any(path[0] == name for path in paths)]
