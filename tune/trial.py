"""One trial: the command that a user would give, as a group of processes of its own, watched until it ends.

A trial's folder is a run's folder, named after what is tried, so that whoever starts it again goes on with it.  What it
came to stands in trial.json, which ends it.
"""

import fcntl
import importlib.util
import json
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrec import config as cfg
from distrec.data import store
from distrec.runtime import REFUSED, die_along, write_atomically
from tune.space import Point, Sweep

ENDED = "trial.json"
_POLL = 0.3  # seconds
_GRACE = 30.0  # seconds that a group has to save and leave


class Refused(Exception):
    """The command does not take these values, or they cannot be trained on: another try would end the same way."""


class Busy(Exception):
    """Another trial is making what this one needs too: codes, a SASRec."""


@dataclass(frozen=True)
class Trial:
    """`folder`: of its run; `shared`: the file with what all trials share."""

    point: Point
    seed: int
    folder: Path
    shared: Path

    @classmethod
    def of(cls, point: Point, seed: int, root: Path) -> "Trial":
        name = store.digest({"point": point, "seed": seed})[:12]
        return cls(point, seed, root / "trials" / name, root / "base.yaml")

    @property
    def words(self) -> list[str]:
        point = [cfg.word(key, value) for key, value in self.point.items()]
        return [str(self.shared), *point, f"seed={self.seed}", f"out={self.folder}"]

    @property
    def has_ended(self) -> bool:
        return (self.folder / ENDED).exists()

    def evaluations(self) -> list[dict[str, Any]]:
        """The journal's, oldest first; a line that is being written does not count."""
        return [line for line in self._journal() if line.get("event") == "valid"]

    def _journal(self) -> Iterator[dict[str, Any]]:
        try:
            lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                return

    def outcome(self) -> dict[str, Any]:
        """What `end` wrote down."""
        return json.loads((self.folder / ENDED).read_text(encoding="utf-8"))

    def end(self, status: str, metric: str, why: str = "") -> None:
        """Write down what it came to: figures of the validation split at the checkpoint that is kept (best NDCG@10)."""
        found = self.evaluations()
        best = max(found, key=lambda line: line["ndcg@10"], default=None)
        told = {
            "point": self.point,
            "seed": self.seed,
            "status": status,
            "why": why,
            "value": best[metric] if best else None,
            "epoch": best["epoch"] if best else None,
            "epochs": found[-1]["epoch"] if found else 0,
            "repeats": best.get("repeats", 0) if best else 0,
            "valid": {key: best[key] for key in best if "@" in key or key == "mrr"} if best else {},
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / ENDED, json.dumps(told, indent=1))


def command(sweep: Sweep, words: Sequence[str], node: int = 0, address: str = "", port: int = 0) -> list[str]:
    """What starts this node's processes.   `address`, `port`: of the first node, where there are several."""
    spec = importlib.util.find_spec("distrec.train")
    assert spec is not None
    program = [str(spec.origin), *words]
    many = sweep.nodes > 1
    if sweep.launch:
        meeting = ["--machine_rank", str(node), "--main_process_ip", address] if many else []
        return [
            *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(sweep.launch)),
            *("--num_machines", str(sweep.nodes), "--num_processes", str(sweep.nodes * sweep.processes)),
            *("--main_process_port", str(port or free_port()), *meeting, *program),
        ]
    if many:
        meeting = ["--nnodes", str(sweep.nodes), "--node_rank", str(node), "--master_addr", address, "--master_port", str(port)]  # fmt: skip
    elif sweep.processes > 1:
        meeting = ["--standalone"]
    else:
        return [sys.executable, *program]
    return [sys.executable, "-m", "torch.distributed.run", *meeting, "--nproc_per_node", str(sweep.processes), *program]


def environment(sweep: Sweep) -> dict[str, str]:
    """Its share of the machine."""
    given = {"OMP_NUM_THREADS": str(max(1, int(sweep.cpus)))}
    if not sweep.gpus:
        given |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **given}


def run(
    start: Sequence[str],
    env: Mapping[str, str],
    trial: Trial,
    cwd: Path,
    are_others_lost: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, Any]]:
    """Each evaluation as it comes, from the first one.   `cwd`: where a config's paths begin, the sweep's own.

    Raises: Refused when the command's input is wrong or its loss is not finite; Busy; RuntimeError when its processes were
    killed or failed, or do not end by themselves after the trial's others were lost.  Whoever stops asking ends the
    processes: they save first.
    """
    trial.folder.mkdir(parents=True, exist_ok=True)
    _wait_until_free(trial.folder / ".lock")
    with (trial.folder / "log.txt").open("ab") as log:
        log.write(f"$ {shlex.join(start)}\n".encode())
        log.flush()
        group = subprocess.Popen(
            start, cwd=cwd, env=env, stdout=log, stderr=log, start_new_session=True, preexec_fn=die_along
        )
    told, patience = 0, _GRACE
    try:
        while True:
            code = group.poll()
            found = trial.evaluations()
            yield from found[told:]
            told = max(told, len(found))
            if code is not None:
                break
            time.sleep(_POLL)
            patience -= _POLL if are_others_lost() else 0
            if patience < 0:
                raise RuntimeError("another of its nodes was lost")
    finally:
        _end(group)
    if code != 0:
        _judge(code, trial)


def _wait_until_free(lock: Path) -> None:
    """Until the processes of an earlier try, whose watcher was killed, have saved and left; or for a while."""
    held = os.open(lock, os.O_CREAT | os.O_RDWR)
    end = time.monotonic() + 2 * _GRACE
    try:
        while time.monotonic() < end:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(_POLL)
    finally:
        os.close(held)


def _judge(code: int, trial: Trial) -> None:
    """Launchers turn every code into 1: what the trial said tells."""
    lines = (trial.folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    since = max(i for i, line in enumerate(lines) if line.startswith("$ "))
    errors = [line for line in lines[since:] if line.startswith("error: ")]
    if errors and code in (REFUSED, 1):
        why = errors[0].removeprefix("error: ")
        raise (Busy if why.startswith(store.BUSY) else Refused)(why)
    raise RuntimeError(f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}")


def _end(group: "subprocess.Popen[bytes]") -> None:
    """Ask the whole group to save and leave; kill what stays."""
    for number, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, math.inf)):
        try:
            os.killpg(group.pid, number)
        except ProcessLookupError:
            return
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if group.poll() is not None:
                break
            time.sleep(0.05)


def free_port() -> int:
    """On every address of this machine: other nodes come by one of them."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
