"""What a sweep searches: keys of a config and their values, checked before anything starts.

model.sigma: [1, 2, 3]                               these
model.tfm.cutoff: {low: 0.1, high: 0.9, step: 0.2}   from … to, in steps
train.lr: {low: 1.0e-4, high: 1.0e-2, log: true}     anything between (search=random or tpe)
"""

import difflib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, Field

from distrec import config as cfg
from distrec import knobs
from distrec.data import store
from distrec.engine.evaluation.metrics import NAMES
from distrec.hints import Like, below, names
from distrec.settings import Schema

Point = dict[str, Any]
_MOST = 10_000  # points of a grid


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """The section `sweep` of a sweep's files."""

    __pydantic_config__: ClassVar[ConfigDict] = knobs.STRICT
    space: Annotated[dict[str, Any], Like(cfg.Config, many=True)]
    search: Literal["grid", "random", "tpe"] = "grid"
    trials: knobs.AtLeastOne = 20  # of random and tpe; a grid has as many as it has
    seeds: Annotated[tuple[knobs.Count, ...], Field(min_length=1)] = (0,)  # each point is trained with each: grids
    scheduler: Literal["none", "asha"] = "none"  # asha: stops the worse ones early
    grace: knobs.AtLeastOne = 3  # evaluations before asha may stop a trial
    reduction: Annotated[int, Field(ge=2)] = 3  # of 1 / reduction asha keeps one
    metric: str = "ndcg@10"  # of the validation split, over all items
    concurrent: knobs.AtLeastOne = 1  # trials at a time
    processes: knobs.AtLeastOne = 1  # of a trial on a node
    nodes: knobs.AtLeastOne = 1  # of a trial
    cpus: knobs.Positive = 1.0  # of a process
    gpus: knobs.Count = 0  # of a process
    launch: Path | None = None  # accelerate's file; None: torchrun, or plain Python for one process
    max_failures: knobs.Count = 3  # that a trial gets over: it goes on from its checkpoint
    keep: knobs.AtLeastOne = 1  # best trials that keep their checkpoints
    seed: knobs.Count = 0  # of random and tpe
    out: Path = Path("sweeps/sweep")
    address: str | None = None  # of a Ray cluster to join; None: Ray starts here, on loopback


@dataclass(frozen=True, kw_only=True, slots=True)
class Job(cfg.Config):
    """A config, and what is searched over it."""

    __pydantic_config__: ClassVar[ConfigDict] = knobs.STRICT
    sweep: Sweep = field(kw_only=True)


@dataclass(frozen=True)
class Range:
    """Numbers from low to high; `is_whole`: integers."""

    low: float
    high: float
    log: bool
    is_whole: bool

    def draw(self, rng: np.random.Generator) -> float | int:
        if self.log:
            value = float(np.exp(rng.uniform(np.log(self.low), np.log(self.high))))
        else:
            value = float(rng.uniform(self.low, self.high + self.is_whole))
        return min(int(value), int(self.high)) if self.is_whole else value


Dimension = tuple[Any, ...] | Range


def load(args: list[str]) -> tuple[Job, dict[str, Dimension]]:
    """A sweep's job and its space, every point of a grid checked, 100 of others.

    Raises: ValueError, one line: a wrong key or value of the config, the sweep or the space; an impossible space.
    """
    job = Schema(Job, cfg.CHOICES).load(args)
    sweep = job.sweep
    if sweep.metric not in NAMES:
        near = difflib.get_close_matches(sweep.metric, NAMES, 1, 0.4)
        raise ValueError(
            f"unknown sweep.metric {sweep.metric!r}; " + (f"did you mean {near[0]!r}?" if near else ", ".join(NAMES))
        )
    if len(sweep.seeds) > 1 and sweep.search != "grid":
        raise ValueError(f"sweep.seeds: several seeds go with sweep.search=grid, not {sweep.search}")
    if len({*sweep.seeds}) < len(sweep.seeds):
        raise ValueError(f"sweep.seeds={list(sweep.seeds)}: one is there twice")
    if sweep.launch is not None and not sweep.launch.is_file():
        raise ValueError(f"sweep.launch={sweep.launch}: no such file")
    if sweep.address not in (None, "auto") and not re.fullmatch(r"[^/]+:\d+", sweep.address):
        raise ValueError(f"sweep.address={sweep.address}: auto, or ADDRESS:PORT of the cluster's first node")
    if job.out is not None:
        raise ValueError("a sweep's folder is sweep.out=DIR; each trial has its own out")
    space = {key: _dimension(key, value, sweep.search) for key, value in _flat(sweep.space).items()}
    if not space:
        raise ValueError("sweep.space is empty: give keys of the config and their values")
    for key in space:
        if inside := names(reduce(below, key.split("."), cfg.Config)):
            raise ValueError(
                f"sweep.space.{key} is a section, and not a key: give values for its keys, such as {key}.{inside[0]}"
            )
    for taken in ("out", "seed", "data.root"):
        if taken in space:
            raise ValueError(f"sweep.space: {taken} is the sweep's own" + ("; sweep.seeds=[0,1,2]" * (taken == "seed")))
    _check(job, space)
    return job, space


def grid(space: Mapping[str, Dimension]) -> Iterator[Point]:
    return (dict(zip(space, values, strict=True)) for values in itertools.product(*_values(space)))


def _values(space: Mapping[str, Dimension]) -> list[tuple[Any, ...]]:
    return [each for each in space.values() if not isinstance(each, Range)]


def drawn(space: Mapping[str, Dimension], n: int, seed: int) -> list[Point]:
    """n points, the same for the same seed, however many are asked for."""
    rngs = (np.random.default_rng([seed, i]) for i in range(n))
    return [{key: _draw(each, rng) for key, each in space.items()} for rng in rngs]


def _draw(dimension: Dimension, rng: np.random.Generator) -> Any:
    return dimension.draw(rng) if isinstance(dimension, Range) else dimension[rng.integers(len(dimension))]


def _flat(space: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Keys with dots; sections may be nested as in a config."""
    found: dict[str, Any] = {}
    for key, value in space.items():
        name = f"{before}{key}"
        is_section = isinstance(value, Mapping) and not {"low", "high"} & value.keys()
        found |= _flat(value, f"{name}.") if is_section else {name: value}
    return found


def _dimension(key: str, value: Any, search: str) -> Dimension:
    where = f"sweep.space.{key}"
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError(f"{where}: no values")
        if len({repr(each) for each in value}) < len(value):
            raise ValueError(f"{where}={list(value)}: a value is there twice")
        return tuple(value)
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}={value!r}: give a list of values, or {{low: …, high: …}}")
    if unknown := value.keys() - {"low", "high", "step", "log"}:
        raise ValueError(f"{where}: unknown {sorted(unknown)[0]!r}; known: low, high, step, log")
    low, high, step, log = value.get("low"), value.get("high"), value.get("step"), bool(value.get("log", False))
    if not isinstance(low, int | float) or not isinstance(high, int | float) or bool in (type(low), type(high)):
        raise ValueError(f"{where}: low and high are numbers (1.0e-4, with a dot, is one in YAML)")
    if low >= high or (log and low <= 0):
        raise ValueError(f"{where}: from {low} to {high} there is nothing" + " on a log scale" * log)
    if step is not None:
        if log or not isinstance(step, int | float) or not 0 < step <= high - low:
            raise ValueError(f"{where}: step {step} does not go with it")
        n = int((high - low) / step + 1e-9) + 1
        return tuple(type(low + step)(round(low + i * step, 12)) for i in range(n))
    if search == "grid":
        raise ValueError(f"{where}: a grid needs a list of values or a step; or sweep.search=tpe")
    return Range(low, high, log, isinstance(low, int) and isinstance(high, int))


def _check(job: Job, space: Mapping[str, Dimension]) -> None:
    """Raises: ValueError naming the first point that is no config, or that a grid is too large."""
    if job.sweep.search == "grid":
        n = math.prod(map(len, _values(space)))
        if n > _MOST:
            raise ValueError(f"sweep.space has {n:,} points: a grid takes {_MOST:,}; sweep.search=tpe")
    points = list(grid(space)) if job.sweep.search == "grid" else drawn(space, 100, job.sweep.seed)
    shared, refused, configs = cfg.shared(job), [], []
    for point in points:
        try:
            configs.append(cfg.load([], shared | {"seed": 0} | point))
            for key, value in point.items():
                cfg.word(key, value)  # by which a trial is told of it
        except ValueError as error:
            refused.append(f"sweep.space, {told(point)}: {error}")
    if refused and (job.sweep.search == "grid" or len(refused) == len(points)):
        raise ValueError(refused[0] + (f" (and {len(refused) - 1} more points)" if len(refused) > 1 else ""))
    _check_measured(configs)


def _check_measured(configs: Sequence[cfg.Config]) -> None:
    """Raises: ValueError naming what points are measured by differently: their figures would not stand in one table."""
    first = store.flat(cfg.measured(configs[0]))
    for other in configs:
        for key, value in store.flat(cfg.measured(other)).items():
            if value != first[key]:
                raise ValueError(
                    f"sweep.space: {key} would be {first[key]} in some trials and {value} in others, which no table can rank: "
                    f"they are measured on other data or by another protocol; set {key} for all, or start a sweep for each"
                )


def told(point: Point) -> str:
    """A point in a line."""
    return ", ".join(f"{key}={shown(value)}" for key, value in point.items())


def shown(value: Any) -> str:
    """A value of a point in a line."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if text.isprintable() else repr(text)
