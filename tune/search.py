"""The trials of a sweep, by Ray Tune: which comes next, where it runs, which is stopped early.

Ray knows nothing that has to last: what a sweep has found stands in the trials' own folders.  A sweep that is started again
leaves out those that have ended, goes on with those that have not, and tells the search what it knew.
Deviation: Tuner.restore is not used, because it unpickles a folder's files.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from tune import cluster  # before Ray: it says what Ray reads as it is imported

os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # without it Ray prints a box, whatever the verbosity
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # what has to last stands in the trials' own folders

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from distrec.runtime import log
from tune.space import Dimension, Range, Sweep, told
from tune.trial import Busy, Refused, Trial, command, environment, free_port, run

VALUE = "value"  # what Ray compares: the best so far
TRIAL = "trial"
_LOOK = 5.0  # seconds between looks at the cluster's nodes


def search(sweep: Sweep, space: dict[str, Dimension], trials: Sequence[Trial], root: Path) -> None:
    """Run what has not ended; a line for each that has.

    `trials`: all of a grid or of random points; of tpe those of earlier starts.
    """
    left = [trial for trial in trials if not trial.has_ended]
    if sweep.search == "tpe":
        space_of, algorithm, n = {}, _tpe(sweep, space, root), sweep.trials - (len(trials) - len(left))
    else:
        space_of, algorithm, n = {TRIAL: tune.grid_search([(t.point, t.seed) for t in left])}, None, 1
    if n < 1 or (algorithm is None and not left):
        return
    tuner = tune.Tuner(
        tune.with_resources(_watched(sweep, root), _bundles(sweep)),
        param_space=space_of,
        tune_config=tune.TuneConfig(
            metric=VALUE,
            mode="max",
            num_samples=n,
            search_alg=algorithm,
            scheduler=_scheduler(sweep),
            max_concurrent_trials=sweep.concurrent,
            reuse_actors=sweep.scheduler == "none",  # seconds a trial; Ray hangs where one that it stopped still saves
        ),
        run_config=tune.RunConfig(
            storage_path=str(root.absolute() / "ray"),
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
            callbacks=[Teller(sweep, root, n if algorithm else len(left))],
            verbose=0,
        ),
    )
    tuner.fit()


class Lost(Exception):
    """Too few nodes are left, and none came back."""


class Teller(tune.Callback):
    """Writes down what a trial came to as soon as Ray is done with it, and says it.   `n`: trials of this start."""

    def __init__(self, sweep: Sweep, root: Path, n: int):
        self._sweep, self._root, self._n = sweep, root, n
        self._done, self._started = 0, time.monotonic()
        self._looked = self._whole = self._started

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Raises: Lost, where Ray would wait for good."""
        now = time.monotonic()
        if self._sweep.address is None or now < self._looked + _LOOK:
            return
        self._looked = now
        if len(cluster.fit(self._sweep)) >= self._sweep.nodes:
            self._whole = now
        elif now > self._whole + cluster.PATIENCE:
            raise Lost(cluster.too_small(self._sweep))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Ray stopped it early, where it has not ended by itself."""
        self._end(trial, "stopped")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, "failed")

    def _end(self, trial: Any, status: str) -> None:
        own = _trial(trial.config, self._sweep, self._root)
        if not own.has_ended:
            own.end(status, self._sweep.metric, why=_last_line(own) if status == "failed" else "")
        self._done += 1
        announce(own, f"{self._done} of {self._n}", self._left())

    def _left(self) -> str:
        """The time that the others will take, should they take as long as those that have ended."""
        seconds = (time.monotonic() - self._started) / self._done * (self._n - self._done)
        return f"about {timedelta(seconds=round(seconds))} left" if self._done < self._n else ""


def _last_line(trial: Trial) -> str:
    path = trial.folder / "log.txt"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "")[:300]


def _trial(config: dict[str, Any], sweep: Sweep, root: Path) -> Trial:
    point, seed = config[TRIAL] if TRIAL in config else (config, sweep.seeds[0])
    return Trial.of(point, seed, root)


def _watched(sweep: Sweep, root: Path) -> Callable[[dict[str, Any]], None]:
    """What Ray runs in a worker for each trial."""
    root, cwd = root.absolute(), Path.cwd()  # Ray goes elsewhere

    def watched(config: dict[str, Any]) -> None:
        trial = _trial(config, sweep, root)
        best, status, why = float("-inf"), "done", ""
        try:
            for line in _lines(sweep, trial, cwd):
                best = max(best, line[sweep.metric])
                tune.report({VALUE: best, "epoch": line["epoch"]})
        except Refused as error:
            status, why = "refused", str(error)
        trial.end(status, sweep.metric, why)
        if best == float("-inf"):
            tune.report({VALUE: 0.0, "epoch": 0})

    return watched


def _lines(sweep: Sweep, trial: Trial, cwd: Path) -> Iterator[dict[str, Any]]:
    """A trial's evaluations; its launch waits while another makes what both need, so that it is made once."""
    pause = 5.0
    while True:
        try:
            yield from _launched(sweep, trial, cwd)
            return
        except Busy:
            time.sleep(pause)
            pause = min(2 * pause, cluster.PATIENCE)


def _launched(sweep: Sweep, trial: Trial, cwd: Path) -> Iterator[dict[str, Any]]:
    """The evaluations of one launch, on all its nodes."""
    start, others = _start(sweep, trial, cwd)
    try:
        yield from run(start, environment(sweep), trial, cwd, lambda: _are_lost(others))
    finally:
        for other in others:
            ray.cancel(other)
        if others:
            ray.wait(others, num_returns=len(others), timeout=cluster.PATIENCE)


def _start(sweep: Sweep, trial: Trial, cwd: Path) -> tuple[list[str], list[Any]]:
    """(the command of this node, the watchers of the trial's other nodes)."""
    if sweep.nodes == 1:
        return command(sweep, trial.words), []
    address, port = ray.util.get_node_ip_address(), free_port()
    group = ray.util.get_current_placement_group()
    assert group is not None
    cpus, gpus = cluster.needs(sweep)
    others: list[Any] = []
    for node in range(1, sweep.nodes):
        strategy = PlacementGroupSchedulingStrategy(group, node)
        another = ray.remote(num_cpus=cpus, num_gpus=gpus, scheduling_strategy=strategy, max_retries=0)(_watch)
        others.append(another.remote(sweep, command(sweep, trial.words, node, address, port), trial, node, cwd))
    return command(sweep, trial.words, 0, address, port), others


def _watch(sweep: Sweep, start: list[str], trial: Trial, node: int, cwd: Path) -> None:
    """Another node of a trial, until its processes have ended."""
    own = Trial(trial.point, trial.seed, trial.folder / f"node-{node}", trial.shared)
    for _ in run(start, environment(sweep), own, cwd):
        pass


def _are_lost(others: list[Any]) -> bool:
    """Has a node failed, or gone?"""
    ended, _ = ray.wait(others, num_returns=len(others), timeout=0) if others else ([], [])
    for other in ended:
        try:
            ray.get(other)
        except RayError:
            return True
    return False


def _bundles(sweep: Sweep) -> Any:
    cpus, gpus = cluster.needs(sweep)
    return tune.PlacementGroupFactory(
        [{"CPU": cpus, "GPU": gpus}] * sweep.nodes, strategy="STRICT_SPREAD" if sweep.nodes > 1 else "PACK"
    )


def _scheduler(sweep: Sweep) -> Any:
    if sweep.scheduler == "none":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="training_iteration", max_t=10**6, grace_period=sweep.grace, reduction_factor=sweep.reduction
    )


def _tpe(sweep: Sweep, space: dict[str, Dimension], root: Path) -> Any:
    """Optuna's.  It keeps a journal, by which it knows what earlier starts found; what they left unfinished comes first."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState
    from ray.tune.search.optuna import OptunaSearch

    def of(dimension: Dimension) -> Any:
        if not isinstance(dimension, Range):
            return optuna.distributions.CategoricalDistribution(dimension)
        if dimension.is_whole:
            return optuna.distributions.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
        return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(root / "optuna.jsonl")))
    study = optuna.create_study(storage=storage, study_name="sweep", direction="maximize", load_if_exists=True)
    known = len(study.trials)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return OptunaSearch(
        {key: of(each) for key, each in space.items()},
        metric=VALUE,
        mode="max",
        sampler=optuna.samplers.TPESampler(seed=sweep.seed + known),  # else it would begin with the same points again
        storage=storage,
        study_name="sweep",
    )


def announce(trial: Trial, place: str, left: str) -> None:
    """What a trial came to, in a line."""
    line = trial.outcome()
    value = "–" if line["value"] is None else f"{line['value']:.4f}"
    more = "; ".join(part for part in (line["why"], left) if part)
    log(f"{place}: {line['status']:<8} {value}  {told(trial.point)}, seed={trial.seed}" + f"  ({more})" * bool(more))
