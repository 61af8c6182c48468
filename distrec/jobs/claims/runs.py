"""The runs of an experiment, by the commands that a user would give: several at a time, each once, gone on with after a kill."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from distrec import config as cfg
from distrec.data import prepared, store
from distrec.data.prepared import Prepared
from distrec.engine.trainer import SCHEDULE
from distrec.jobs.analysis.subject import SETTINGS, code
from distrec.jobs.claims.job import Job, config, parts
from distrec.jobs.parts.identity import data_of, made_by
from distrec.runtime import FAILED, REQUEUE, die_along, log, write_atomically

_POLL = 0.5  # seconds
_AGAIN = 10.0  # seconds until what another process was at work on is asked for again
_GRACE = 60.0


@dataclass(frozen=True)
class Planned:
    """`folder`: named after what shapes the run, so that experiments share it."""

    name: str
    seed: int
    folder: Path
    train: tuple[str, ...]
    analyze: tuple[str, ...]
    parts: frozenset[str]  # of the analysis

    def left(self) -> list[tuple[str, ...]]:
        """The commands that were not carried out yet; what they left is read again when all are."""
        if not (self.folder / store.STAMP).exists():
            return [self.train, *([self.analyze] if self.parts else [])]
        if not self.parts or not (self.folder / "analysis").exists():
            return [self.analyze] if self.parts else []
        made: Mapping[str, Any] = store.read_stamp(self.folder / "analysis")["made_by"]
        is_there = (
            self.parts <= set(made["parts"])
            and {key: made.get(key) for key in SETTINGS} == SETTINGS
            and made["run"] == store.content(self.folder)
            and made.get("code") == code()
        )
        return [] if is_there else [self.analyze]


class Lost(Exception):
    """A run that did not end well."""


def planned(job: Job) -> list[Planned]:
    """Every run of every seed; what each is trained by is written beside them."""
    own, found = job.experiment, []
    chosen = parts(job)
    for seed in own.seeds:
        for name in own.runs:
            each = config(job, name, seed)
            key = cfg.plain(each)
            del key["data"]["root"], key["out"]
            folder = store.folder(own.root / "runs", each.model.name, key | {"schedule": SCHEDULE})
            file = folder.with_suffix(".yaml")
            train = ("train", str(file), f"out={folder}")
            analyze = ("analyze", f"out={folder}", f"parts={','.join(chosen)}", f"data.root={each.data.root}")
            found.append(Planned(name, seed, folder, train, analyze, frozenset(chosen)))
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, cfg.dump(each))
    return found


def check_data(planned: Sequence[Planned]) -> None:
    """Raise ValueError, in terms of files and interactions, when a run that has begun is of other data than these."""
    data: dict[str, Prepared] = {}
    for each in planned:
        if made_by(each.folder):
            own = cfg.load([str(each.folder.with_suffix(".yaml"))])
            key = store.digest(cfg.plain(own.data))
            if key not in data:
                data[key] = prepared.load(prepared.prepare(own.data))
            data_of(each.folder, own, data[key])


def carry_out(
    runs: Sequence[Planned], jobs: int, stop: Callable[[], bool], check: Callable[[Planned], None] = lambda run: None
) -> bool:
    """Train and analyse what is not there yet; False when a signal stopped it.   `check`: of each run that is done.

    Where two need what neither has (codes, a SASRec) the first makes it, and the other asks again.
    Raises: Lost naming a run that failed; what `check` raises.
    """
    waiting = [each for each in (Waiting(run, run.left()) for run in runs) if each.left]
    left = {each.run for each in waiting}
    busy: list[Waiting] = []
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    with tqdm(total=len(runs), initial=len(runs) - len(waiting), desc="runs", unit="run") as bar:
        try:
            for run in runs:
                if run not in left:
                    check(run)
            while waiting or busy:
                if stop():
                    return False
                for each in [each for each in waiting if each.not_before <= time.monotonic()][: jobs - len(busy)]:
                    waiting.remove(each)
                    busy.append(each)
                    each.start(threads)
                for each in [each for each in busy if each.code() is not None]:
                    busy.remove(each)
                    if each.judge():
                        check(each.run)
                        bar.update()
                    else:
                        waiting.append(each)
                time.sleep(_POLL)
        finally:
            for each in busy:
                each.end()
    return True


class Waiting:
    """A run, and the commands that are left of it."""

    def __init__(self, run: Planned, left: list[tuple[str, ...]]):
        self.run, self.left, self.not_before = run, left, 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._log = run.folder.with_suffix(".log")

    @property
    def _own(self) -> Path:
        """Its log while it is at work: others may be at work on the same run."""
        assert self._process is not None
        return self._log.with_suffix(f".{self._process.pid}.log")

    def start(self, threads: int) -> None:
        env: Mapping[str, str] = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with tempfile.NamedTemporaryFile(dir=self._log.parent, prefix=f".{self._log.stem}.", delete=False) as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "distrec.jobs", *self.left[0]],
                stdout=file,
                stderr=file,
                env=env,
                start_new_session=True,
                preexec_fn=die_along,
            )
        Path(file.name).rename(self._own)

    def code(self) -> int | None:
        assert self._process is not None
        return self._process.poll()

    def end(self) -> None:
        """Ask to save and leave; kill what stays."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._own.replace(self._log)

    def judge(self) -> bool:
        """Whether nothing is left to do, once its command has ended.   Raises: Lost."""
        code, text = self.code(), self._own.read_text(encoding="utf-8", errors="replace")
        is_busy = code != 0 and f"error: {store.BUSY}" in text  # it lost a race, and says so before it does anything
        if is_busy:
            self._own.unlink()
        else:
            self._own.replace(self._log)
        if code == 0:
            del self.left[0]
            return not self.left
        lines = [line for line in text.splitlines() if line.strip()]
        why = next((line for line in lines if line.startswith("error: ")), lines[-1] if lines else "")
        if is_busy:
            self.not_before = time.monotonic() + _AGAIN
            return False
        raise Lost(f"{self.run.name}, seed {self.run.seed}: {' '.join(self.left[0])} ended with code {code}: {why}")


def told(error: Lost) -> int:
    log(f"{error}; the same command goes on when that is mended")
    return FAILED


def stopped() -> int:
    log("stopped; the same command goes on")
    return REQUEUE
