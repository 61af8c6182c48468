"""A run from its config to its test figures: build, train, rank, stamp."""

import fcntl
import importlib.metadata
import os
import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate.utils import DynamoBackend
from torch import Tensor

from distrec import config as cfg
from distrec.data import batches, store
from distrec.data.prepared import Prepared
from distrec.engine import compatibility, numerics
from distrec.engine.checkpoint import Checkpoints
from distrec.engine.evaluation import outcome
from distrec.engine.parallel import stage
from distrec.engine.trainer import Trainer
from distrec.jobs.parts import warm_start
from distrec.jobs.parts.assemble import COUNTING, assemble, parts_of
from distrec.jobs.parts.identity import CHECKPOINT, check_settings, data_of, settings
from distrec.jobs.parts.work import Work
from distrec.models.build import is_trained
from distrec.models.ranking import PIECE, TableModel
from distrec.runtime import Journal, Ranks, Stopped, log, write_atomically

_SCRATCH = ".item_table.tmp"


def train(work: Work) -> Path | None:
    """The folder of a finished run; None when a signal stopped it after it had saved."""
    config, data, ranks, accelerator = work.config, work.data, work.ranks, work.accelerator
    origin = warm_start.begun(work)
    if not origin:
        warm_start.check(work)
    if config.out:
        data = data_of(config.out, config, data)
        work = replace(work, data=data)
        ranks.main_first(partial(check_settings, config.out, {**settings(config), "data": data.stamp}))
    compiled = accelerator.state.dynamo_plugin.backend != DynamoBackend.NO
    compatibility.check(stage(accelerator), compiled, getattr(config.model, "backbone", None))
    if not isinstance(config.model, COUNTING):
        batches.learners(data)
    parent = None if origin else warm_start.parent_of(work)
    parts = parts_of(work, train)
    if parts is None:
        log("stopped before training; the same command goes on from there")
        return None
    whole = stage(accelerator) < 3  # else DeepSpeed moves it, part by part
    leave = work.stop if whole else lambda: False  # no rank of ZeRO-3 can leave the others alone
    model: Any = assemble(config, data, parts, work.device if whole else torch.device("cpu"))
    if parent:
        warm_start.check_codes(work, parts, parent)
    made = {**settings(config), "data": data.stamp, **parts.hashes, **(parent.made if parent else origin)}
    out = config.out or Path("runs") / f"{config.data.source}-{config.model.name}-{store.digest(made)[:8]}"
    lock = ranks.main_first(partial(enter, out, config, made, ranks))
    if (out / store.STAMP).exists():
        store.verify_stamped(out)
        if is_trained(model):
            checkpoints = Checkpoints(out / "checkpoints", made)
            store.verify(checkpoints.folder / checkpoints.best(), made)
        if (out / "item_table").exists():
            store.verify(out / "item_table")
        log(f"{out} is finished already (choose another out=DIR to train again)")
    else:
        journal = Journal(out / "metrics.jsonl", ranks)
        seen = None
        if is_trained(model):
            if parent:
                parent.load(model)
            checkpoints = Checkpoints(out / "checkpoints", made, config.train.async_save)
            trainer = Trainer(
                config.train, config.score, model, data, checkpoints, journal, accelerator, ranks, config.seed
            )
            if config.train.trackers:
                accelerator.init_trackers("distrec", _told(config))
            if not trainer.fit(work.stop):
                log(f"stopped at step {trainer.progress.step}; the same command goes on from there")
                return None
            checkpoints.load(trainer.progress.best_checkpoint, trainer.parallel, only_weights=True)
            seen = trainer.samples.items_read(data)
        try:
            report, table = outcome.measure(model, data, "test", config.score, ranks, work.device, leave)
        except Stopped:
            log("stopped before the test figures; the same command goes on from there")
            return None
        items = item_table(model, out / _SCRATCH, ranks) if isinstance(model, TableModel) else None
        if ranks.is_main:
            start = {"from": str(work.parent)} if work.parent else {}
            finish(out, config, data, (items, seen), made, journal, report, table, start)
    if lock >= 0:
        os.close(lock)
    ranks.wait()  # the stamp is written before any rank reads the folder
    return out


def _told(config: cfg.Config) -> dict[str, Any]:
    """The config as trackers take it."""
    values = store.flat(cfg.plain(config))
    return {key: value if isinstance(value, int | float | str) else str(value) for key, value in values.items()}


def enter(out: Path, config: cfg.Config, made: dict[str, Any], ranks: Ranks) -> int:
    """Take the run folder: one job at a time, one run a folder; a finished one is for everybody (-1).  The lock goes with
    the process."""
    if not ranks.is_main:
        return -1
    wanted = {CHECKPOINT: None, **made}  # a run without from= is not one that has a parent
    if (out / store.STAMP).exists():
        check_settings(out, wanted)
        return -1
    out.mkdir(parents=True, exist_ok=True)
    lock = os.open(out / ".lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{store.BUSY}training in {out}: choose another out=DIR, or wait") from None
    check_settings(out, wanted)
    if not (out / store.STAMP).exists():
        write_atomically(out / "config.yaml", cfg.dump(config))
    return lock


def finish(
    out: Path,
    config: cfg.Config,
    data: Prepared,
    items: tuple[Tensor | None, Any],
    made: dict[str, Any],
    journal: Journal,
    report: dict[str, Any],
    table: Any,
    start: dict[str, str],
) -> None:
    """Export the item table, write the figures, stamp what the run is and what made it."""
    if items[0] is not None:
        store.make(out / "item_table", {**made, "fitted_on": "train"}, partial(save_table, *items))
        (out / _SCRATCH).unlink()
    journal.write(event="test", **{key: report["full"][key] for key in ("hr@10", "ndcg@10")})
    report |= {"model": config.model.name, "seed": config.seed, "data": data.stamp}
    outcome.write(out, report, table)
    versions = {
        name: importlib.metadata.version(name)
        for name in ("distrec", "torch", "accelerate", "datasets", "polars", "numpy")
    }
    provenance = {
        **made,
        **start,
        "prepared": data.folder.name,
        "command": shlex.join(sys.argv),
        "versions": versions,
        "numerics": numerics.facts(),
    }
    store.stamp_files(out, provenance, ["config.yaml", "metrics.jsonl", "test.json", "ranks.parquet"])


def item_table(model: TableModel, scratch: Path, ranks: Ranks) -> Tensor | None:
    """All item vectors, on the main rank, in a mapped file: they need not fit into memory.   By all: ZeRO-3 gathers as
    it goes."""
    table = None
    for low in range(0, model.n_items, PIECE):
        rows = model.item_vectors(slice(low, min(low + PIECE, model.n_items)))
        if ranks.is_main:
            if table is None:
                n = model.n_items * rows.shape[1]
                table = torch.from_file(str(scratch), shared=True, size=n).view(model.n_items, -1)
            table[low : low + len(rows)] = rows
    return table


def save_table(table: Tensor, seen: Any, folder: Path) -> None:
    """The item embeddings, one row an item id, for models that build on them; `seen`: how often training read each."""
    tensors = {"item_table": table, "seen": torch.from_numpy(seen)}
    safetensors.torch.save_file(tensors, folder / "item_table.safetensors")
