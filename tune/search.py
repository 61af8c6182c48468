"""The trials of a sweep, by Ray Tune: which comes next, where it runs, which is stopped early.

Ray knows nothing that has to last: what a sweep has found stands in the trials' own folders.  A sweep that is started again
leaves out those that have ended, goes on with those that have not, and tells the search what it knew.
Deviation: Tuner.restore is not used, because it unpickles a folder's files.
"""

import logging
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # without it Ray prints a box, whatever the verbosity
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # what has to last stands in the trials' own folders
os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
from ray import tune
from ray._private import ray_constants, services
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.exceptions import AuthenticationError, RayError
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from distrec.runtime import log
from tune.space import Dimension, Range, Sweep, told
from tune.trial import Busy, Refused, Trial, command, environment, free_port, run

VALUE = "value"  # what Ray compares: the best so far
TRIAL = "trial"
_LOOK = 5.0  # seconds between looks at the cluster's nodes
_PATIENCE = 60.0  # seconds that a cluster, or another node of a trial, has to come or to go


def join(sweep: Sweep) -> None:
    """Start Ray on loopback with this sweep's share of the machine, or join a cluster by its token.

    Raises: ValueError where no cluster answers, it wants another token, or too few of its nodes have what a trial asks for.
    """
    if sweep.address is None:
        cpus, gpus = _needs(sweep)
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else one for good in the home folder
        ray_constants.ENABLE_RAY_CLUSTER = False  # else Ray takes the machine's own address instead of loopback
        ray.init(
            address="local",  # whatever cluster runs here
            num_cpus=math.ceil(sweep.concurrent * cpus),
            num_gpus=sweep.concurrent * gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
        )
        return
    try:
        _knock(sweep.address)
        ray.init(address=sweep.address, log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError as error:
        why = "not this cluster's token" if "InvalidAuthToken" in str(error) else "no token"
        raise ValueError(f"sweep.address={sweep.address}: {why}: RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH=FILE") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"sweep.address={sweep.address}: {str(error).strip().splitlines()[0]}") from None
    end = time.monotonic() + _PATIENCE
    while len(_fit(sweep)) < sweep.nodes:
        if time.monotonic() > end:
            raise ValueError(_too_small(sweep))
        time.sleep(1)


def _knock(address: str) -> None:
    """Ray would try for minutes, and end without a word on what is wrong."""
    address = services.canonicalize_bootstrap_address_or_die(address)
    host, _, port = address.rpartition(":")
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            socket.create_connection((host, int(port)), 5).close()
            break
        except OSError as error:
            if time.monotonic() > end:
                raise ConnectionError(f"no cluster answers ({error})") from None
            time.sleep(1)
    ensure_token_if_auth_enabled(create_token_if_missing=False)
    GcsClient(address=address)


def _fit(sweep: Sweep) -> list[dict[str, float]]:
    """The cluster's nodes on which a trial's processes have room."""
    return [node for node in _nodes() if all(node.get(name, 0) >= n for name, n in zip(("CPU", "GPU"), _needs(sweep), strict=True))]  # fmt: skip


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _too_small(sweep: Sweep) -> str:
    nodes = _nodes()
    largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
    return (
        f"a trial takes {sweep.nodes} node(s) with {_asked(sweep)}; {len(_fit(sweep))} of the cluster's {len(nodes)} have them "
        f"(the largest: {largest.get('CPU', 0):.0f} cores, {largest.get('GPU', 0):.0f} GPUs)"
    )


def check_machine(sweep: Sweep, cores: int, gpus: int) -> None:
    """Raises: ValueError where this machine has too little for the trials at a time."""
    if sweep.nodes > 1:
        raise ValueError(
            f"sweep.nodes={sweep.nodes} wants a Ray cluster: sweep.address=ADDRESS (slurm/tune.sbatch starts one)"
        )
    needs = _needs(sweep)
    for name, needed, there in (("cores", needs[0], cores), ("GPUs", needs[1], gpus)):
        if sweep.concurrent * needed > there:
            raise ValueError(
                f"{sweep.concurrent} trial(s) at a time with {_asked(sweep)} each take {sweep.concurrent * needed:g} {name}; "
                f"this machine has {there}: sweep.concurrent, sweep.processes, sweep.cpus, sweep.gpus"
            )


def _needs(sweep: Sweep) -> tuple[float, int]:
    """(cores, GPUs) of a trial on a node."""
    return sweep.processes * sweep.cpus, sweep.processes * sweep.gpus


def _asked(sweep: Sweep) -> str:
    cpus, gpus = _needs(sweep)
    return f"{cpus:g} cores" + (f" and {gpus} GPUs" if gpus else "")


def machine() -> tuple[int, int]:
    """(cores, GPUs) of this one."""
    import torch

    return len(os.sched_getaffinity(0)), torch.cuda.device_count()


def leave() -> None:
    if ray.is_initialized():
        ray.shutdown()


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
            reuse_actors=True,
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
        if len(_fit(self._sweep)) >= self._sweep.nodes:
            self._whole = now
        elif now > self._whole + _PATIENCE:
            raise Lost(_too_small(self._sweep))

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
            pause = min(2 * pause, _PATIENCE)


def _launched(sweep: Sweep, trial: Trial, cwd: Path) -> Iterator[dict[str, Any]]:
    """The evaluations of one launch, on all its nodes."""
    start, others = _start(sweep, trial, cwd)
    try:
        yield from run(start, environment(sweep), trial, cwd, lambda: _are_lost(others))
    finally:
        for other in others:
            ray.cancel(other)
        if others:
            ray.wait(others, num_returns=len(others), timeout=_PATIENCE)


def _start(sweep: Sweep, trial: Trial, cwd: Path) -> tuple[list[str], list[Any]]:
    """(the command of this node, the watchers of the trial's other nodes)."""
    if sweep.nodes == 1:
        return command(sweep, trial.words), []
    address, port = ray.util.get_node_ip_address(), free_port()
    group = ray.util.get_current_placement_group()
    assert group is not None
    cpus, gpus = _needs(sweep)
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
    cpus, gpus = _needs(sweep)
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
