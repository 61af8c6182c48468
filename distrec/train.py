"""accelerate launch distrec/train.py [FILE.yaml …] [section.key=value …]

Prepares the data if need be, trains, ranks the test split once with the best-validation checkpoint.
With no argument: SASRec on the built-in catalogue.  Started again, a killed run goes on bit for bit.

  data.source=… data.path=…   the interactions (distrec prepare --help)
  model.name=…                popularity, item_knn, markov, sasrec; tiger, tone (their codes are made first)
  train.epochs=… train.lr=…   the loop            out=DIR   the run folder       seed=…

Every key with its default: distrec config.   Two processes on a CPU:
  torchrun --standalone --nproc_per_node 2 distrec/train.py …

Exit codes: 0 done · 1 failed · 2 wrong usage or input · 75 stopped by a signal after saving (accelerate launch and
torchrun report any of them but 0 as 1; `distrec train` and `python distrec/train.py` keep them).
"""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from distrec import config as cfg
from distrec.data import prepared, store
from distrec.data.prepared import Prepared
from distrec.engine import outcome
from distrec.engine.checkpoint import Checkpoints
from distrec.engine.launch import join
from distrec.engine.trainer import Trainer
from distrec.jobs.assemble import assemble
from distrec.jobs.codes.artefact import Collapsed, Work
from distrec.models.build import is_trained
from distrec.runtime import DONE, FAILED, REQUEUE, Journal, Ranks, Stop, log, run, write_atomically

_FREE = (
    "train.log_steps",
    "train.save_steps",
    "train.trackers",
    "model.codes",
)  # may differ between a run and its resumption


def main(argv: Sequence[str]) -> int:
    config = cfg.load(argv)
    if config.out and (not os.access(_existing(config.out), os.W_OK) or not _existing(config.out).is_dir()):
        raise ValueError(f"out={config.out}: {_existing(config.out)} is no folder that can be written to")
    accelerator = join(config.train, config.out)
    ranks = Ranks.here()
    data = prepared.load(ranks.main_first(partial(prepared.prepare, config.data)))
    with Stop() as stop:
        try:
            assembled = assemble(Work(config, data, ranks, stop, accelerator.device))
        except Collapsed as error:
            log(str(error))
            return FAILED
    if assembled is None:
        log("stopped before training; the same command goes on from there")
        return REQUEUE
    model, codes = assembled
    made = made_by(config, data, codes)
    out = config.out or Path("runs") / f"{config.data.source}-{config.model.name}-{store.digest(made)[:8]}"
    lock = ranks.main_first(partial(enter, out, config, made, ranks))
    if (out / store.STAMP).exists():
        store.verify_stamped(out)
        log(f"{out} is finished already (remove it to train again)")
    else:
        journal = Journal(out / "metrics.jsonl", ranks)
        seen = None
        if is_trained(model):
            checkpoints = Checkpoints(out / "checkpoints", made)
            trainer = Trainer(
                config.train, config.score, model, data, checkpoints, journal, accelerator, ranks, config.seed
            )
            if config.train.trackers:
                accelerator.init_trackers(
                    "distrec",
                    {
                        key: value if isinstance(value, int | float | str) else str(value)
                        for key, value in store.flat(cfg.plain(config)).items()
                    },
                )
            with Stop() as stop:
                complete = trainer.fit(stop)
            if not complete:
                log(f"stopped at step {trainer.progress.step}; the same command goes on from there")
                return REQUEUE
            checkpoints.load(trainer.progress.best_checkpoint, model)
            seen = trainer.samples.items_read(data)
        report, table = outcome.measure(model, data, "test", config.score, ranks, accelerator.device)
        if ranks.is_main:
            finish(out, config, data, model, made, seen, journal, report, table)
        accelerator.end_training()
    if ranks.is_main:
        print(outcome.lines(json.loads((out / "test.json").read_text())))
        print(f"run folder: {out}")
        os.close(lock)
    return DONE


def _existing(path: Path) -> Path:
    """The path itself, or the nearest of its parents that is there."""
    return path if path.exists() else _existing(path.absolute().parent)


def made_by(config: cfg.Config, data: Prepared, codes: str | None = None) -> dict[str, Any]:
    """What a checkpoint of this run must agree with to be resumed; `codes`: the hash of those that it generates."""
    settings = cfg.plain(config)
    chosen = {
        "model": settings["model"],
        "train": settings["train"],
        "score.mask_history": config.score.mask_history,
        "seed": config.seed,
    }
    made = {key: value for key, value in store.flat(chosen).items() if key not in _FREE} | {"data": data.stamp}
    return made | ({"codes": codes} if codes else {})


def enter(out: Path, config: cfg.Config, made: dict[str, Any], ranks: Ranks) -> int:
    """Take the run folder: one job at a time, one run a folder.  The lock goes with the process."""
    if not ranks.is_main:
        return -1
    out.mkdir(parents=True, exist_ok=True)
    lock = os.open(out / ".lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another process is training in {out}: choose another out=DIR, or wait") from None
    for folder in (out, *sorted((out / "checkpoints").glob("step-*"))):
        with contextlib.suppress(ValueError):  # none, or a broken one: whoever reads it next says so
            before = store.read_stamp(folder)["made_by"]
            break
    else:
        before = made
    differs(out, before, made)
    if not (out / store.STAMP).exists():
        write_atomically(out / "config.yaml", cfg.dump(config))
    return lock


def differs(out: Path, before: dict[str, Any], made: dict[str, Any]) -> None:
    """Refuse to go on with another run's folder, naming the first setting that differs."""
    for key, value in made.items():
        if before.get(key) != value:
            raise ValueError(
                f"{out} holds another run ({key} was {before.get(key)!r}, now {value!r}): "
                "choose another out=DIR or remove it"
            )


def finish(
    out: Path,
    config: cfg.Config,
    data: Prepared,
    model: nn.Module,
    made: dict[str, Any],
    seen: Any,
    journal: Journal,
    report: dict[str, Any],
    table: Any,
) -> None:
    """Export the item table, write the figures, stamp what the run is and what made it."""
    if hasattr(model, "item_table"):
        store.make(out / "item_table", {**made, "fitted_on": "train"}, partial(save_table, model, seen))
    journal.write(event="test", **{key: report["full"][key] for key in ("hr@10", "ndcg@10")})
    report |= {"model": config.model.name, "seed": config.seed, "data": data.stamp}
    outcome.write(out, report, table)
    versions = {
        name: importlib.metadata.version(name)
        for name in ("distrec", "torch", "accelerate", "datasets", "polars", "numpy")
    }
    provenance = {**made, "prepared": data.folder.name, "command": shlex.join(sys.argv), "versions": versions}
    store.stamp_files(out, provenance, ["config.yaml", "metrics.jsonl", "test.json", "ranks.parquet"])


def save_table(model: Any, seen: Any, folder: Path) -> None:
    """The item embeddings, one row an item id, for models that build on them; `seen`: how often training read each."""
    tensors = {"item_table": model.item_table().cpu().contiguous(), "seen": torch.from_numpy(seen)}
    safetensors.torch.save_file(tensors, folder / "item_table.safetensors")


if __name__ == "__main__":
    run(main, __doc__)
