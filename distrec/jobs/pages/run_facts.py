"""What a run folder tells, read once and verified: config, figures, journal, ranks, what it was made of."""

import fcntl
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from distrec import config as cfg
from distrec.data import store
from distrec.engine.evaluation import outcome
from distrec.jobs.parts.chain import Known, Link, chain, opened

_NEEDED = {"train": ("step",), "valid": ("step", "epoch", "ndcg@10", "hr@10")}  # of a line of the journal


@dataclass(frozen=True)
class RunFacts:
    """`figures`, `ranks`, `made_by`, `links`: empty until the run is finished.   `data`: the folder of the prepared data,
    None where it is not at hand."""

    out: Path
    config: cfg.Config
    journal: Sequence[Mapping[str, Any]]
    figures: Mapping[str, Any]
    ranks: pl.DataFrame
    made_by: Mapping[str, Any]
    links: Sequence[Link]
    data: Path | None
    status: str

    def evaluations(self) -> list[Mapping[str, Any]]:
        return [line for line in self.journal if line["event"] == "valid"]


def read(out: Path, words: Sequence[str] = (), known: Known | None = None) -> RunFacts:
    """The facts of a run folder.   `words`: where its artefacts lie now, if they were moved; `known`: as `chain` wants it.

    Raises: ValueError, one line, naming what is missing or is not what was written, in the folder and in all that the run
    was made of.
    """
    config = cfg.load([str(out / "config.yaml")])
    placed = cfg.load([str(out / "config.yaml"), *words])
    if not (out / store.STAMP).exists():
        journal = _journal(out / "metrics.jsonl")
        data = _prepared(out, placed.data.root)
        return RunFacts(out, config, journal, {}, pl.DataFrame(), {}, [], data, _status(out, journal))
    links = chain(out, opened(out, words), known)
    figures, ranks = outcome.read(out)
    data = next((link.folder for link in links if link.name == "prepared data"), None)
    journal = _journal(out / "metrics.jsonl")
    return RunFacts(out, config, journal, figures, ranks, links[0].made_by, links, data, "finished")


def _journal(path: Path) -> list[dict[str, Any]]:
    """Its lines; without the last one where a kill has cut it off."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            [float(record[key]) for key in _NEEDED.get(record["event"], ())]
            found.append(record)
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: no record of a run") from None
    return found


def _status(out: Path, journal: Sequence[Mapping[str, Any]]) -> str:
    """Of a run without a stamp: a living one holds its lock; a stopped one goes on from its last checkpoint."""
    if _is_locked(out / ".lock"):
        return f"running, step {max((line.get('step', 0) for line in journal), default=0):,} when this was written"
    saved = sorted((out / "checkpoints").glob("step-*"))
    return f"stopped at step {int(saved[-1].name.split('-')[1]):,}" if saved else "stopped before its first step"


def _is_locked(lock: Path) -> bool:
    if not lock.is_file():
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _prepared(out: Path, root: Path) -> Path | None:
    """The data of a run that is not finished, by what its latest checkpoint says."""
    for checkpoint in sorted((out / "checkpoints").glob("step-*"))[-1:]:
        wanted = store.read_stamp(checkpoint)["made_by"].get("data")
        for folder in sorted(root.glob("prepared-*")):
            if store.content(folder) == wanted:
                store.verify(folder)
                return folder
    return None
