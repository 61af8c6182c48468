"""What FreLLM4Rec knows of items: a SASRec's vectors and texts' vectors, smoothed over a graph of training interactions.

An artefact `tables-…` holds
    tables.safetensors   collaborative I × S and text I × X, float32; seen: how often SASRec read each item
    graph.safetensors    row, column: the edges of a graph of interactions, each once (what an audit reads)
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from torch import Tensor

from distrec import knobs
from distrec.data import store, vectors
from distrec.data.prepared import Prepared
from distrec.engine.evaluation import scoring
from distrec.engine.trainer import SCHEDULE
from distrec.freq import graph, polynomial
from distrec.jobs.embed import embed
from distrec.jobs.parts import llm
from distrec.jobs.parts.work import Work
from distrec.models.language import pretrained
from distrec.runtime import log
from distrec.settings import plain

FILE = "tables.safetensors"
_HOUR = 3.6e9  # microseconds
_NEIGHBOURS = 10  # of graphs of nearest neighbours, where config says nothing


def tables(work: Work, train: Callable[[Work], Path | None]) -> Path | None:
    """The folder of the filtered vectors, made now unless it is there; None when making them was stopped.

    `train`: makes a run of a config, the SASRec that is missing.

    Raises: ValueError when the run that the config names has no item table, or one of other data.
    """
    config, data = work.config, work.data
    model = config.model
    assert isinstance(model, knobs.Frellm)
    for line in check_sessions(model.graph, data):
        log(line)
    text = embed(llm.encoder(config), config.data, data, work.ranks, work.stop)
    run = model.items or (_sasrec(work, model, train) if text else None)
    if text is None or run is None:
        return None
    verify_run(run, data)
    made = {
        "fitted_on": "train",
        "data": data.stamp,
        "items": store.content(run / "item_table"),
        "text": store.content(text),
        "code": store.file_digest(Path(graph.__file__)),
        **store.flat({"graph": plain(model.graph)}),
    }
    target = store.folder(config.data.root, "tables", made)
    fill = partial(_fill, run=run, text=text, config=model.graph, data=data)
    return work.ranks.main_first(partial(store.make, target, made, fill))


def check_sessions(config: knobs.Graph, data: Prepared) -> list[str]:
    """What is odd about the sessions that a graph is to be made of, in words.   Units: times in microseconds, gap_hours in hours.

    Raises: ValueError when no training interaction has another time than the one before it in its history.
    """
    if config.source != "session":
        return []
    _, start = data.training()
    time = data.time[data.is_train()]
    is_within = np.ones(len(time), bool)
    is_within[start[start < len(time)]] = False
    pauses = np.diff(time)[is_within[1:]]
    named = f"model.graph.source=session with model.graph.gap_hours={config.gap_hours:g}"
    if not pauses.any():
        what = "the data have no times" if not time.any() else "all training interactions of a user have the same time"
        raise ValueError(
            f"model.graph.source=session needs times, but {what}: every history would be one session. "
            "Name the column of times (data.columns.time), or set model.graph.source=interactions"
        )
    gap, step = config.gap_hours * _HOUR, int(np.gcd.reduce(pauses))
    told = []
    if gap < step:
        told.append(
            f"{named}: times are multiples of {step / _HOUR:g} hours apart, so that any gap below makes a session of the "
            "interactions of one instant; give finer times, or a longer gap"
        )
    if not (cut := pauses > gap).any():
        told.append(
            f"{named} cuts no history: the longest pause is {pauses.max() / _HOUR:.3g} hours; this is the graph of "
            "model.graph.source=interactions"
        )
    elif cut.all():
        told.append(f"{named} cuts every history into single items: no two share an edge; give a longer gap")
    return told


def load(folder: Path, data: Prepared) -> dict[str, Tensor]:
    """The vectors of a verified artefact.   Raises: ValueError when it is broken, about other data, or not of training."""
    made = store.verify(folder)["made_by"]
    for key, wanted in (("fitted_on", "train"), ("data", data.stamp)):
        if made.get(key) != wanted:
            raise ValueError(
                f"{folder} is made with {key}={made.get(key)!r}, not {wanted!r}: remove it to have it made anew"
            )
    found = safetensors.torch.load_file(folder / FILE)
    return {name: found[name] for name in ("collaborative", "text")}


def _sasrec(work: Work, model: knobs.Frellm, train: Callable[[Work], Path | None]) -> Path | None:
    """A finished run of the SASRec that the config describes."""
    own = replace(work.config, model=model.sasrec, train=replace(model.sasrec_train, trackers=()), embed=knobs.Embed())
    settings = plain(own.train)
    del settings["async_save"]  # saved either way, it is the same run
    key = {
        "model": plain(own.model),
        "train": settings,
        "seed": own.seed,
        "data": work.data.stamp,
        "schedule": SCHEDULE,
    }
    key["protocol"] = [scoring.PROTOCOL, own.score.mask_history is not False]  # they choose the best epoch
    out = store.folder(own.data.root, "sasrec", key)
    log(f"SASRec for the items' collaborative vectors: {out}")
    return train(replace(work, config=replace(own, out=out)))


def verify_run(run: Path, data: Prepared) -> None:
    """Check the item table of a SASRec's run.   Raises: ValueError when there is none, or it is broken or of other data."""
    folder = run / "item_table"
    if not folder.is_dir():
        raise ValueError(f"model.items={run}: no run with an item table (a finished run of model.name=sasrec has one)")
    made = store.verify(folder)["made_by"]
    if made.get("model.name") != "sasrec":
        raise ValueError(f"model.items={run} is a run of {made.get('model.name')}, not of model.name=sasrec")
    if made.get("data") != data.stamp or made.get("fitted_on") != "train":
        raise ValueError(
            f"model.items={run} is about other data than these: train it on them, or leave model.items out"
        )


def _fill(folder: Path, run: Path, text: Path, config: knobs.Graph, data: Prepared) -> None:
    found = safetensors.torch.load_file(run / "item_table" / "item_table.safetensors")
    # Deviation: an item that no training window held has no vector, where its random start would be taken for one
    known = found["item_table"].float() * (found["seen"] > 0)[:, None]
    told = torch.from_numpy(np.array(vectors.open_file(text / vectors.FILE), dtype=np.float32))
    made = {"collaborative": known, "text": told}
    if config.glpf_alpha > 0:
        adjacency = _graph(config, data, known, told)
        made = {name: polynomial.low_pass(adjacency, x, config.glpf_alpha, config.order) for name, x in made.items()}
        isolated = int((np.diff(adjacency.indptr) == 0).sum())
        log(f"graph: {adjacency.nnz:,} edges, {isolated:,} items without any (they keep their vectors)")
        if config.source in ("interactions", "session"):
            row = np.repeat(np.arange(data.n_items, dtype=np.int32), np.diff(adjacency.indptr))
            once = row <= adjacency.indices
            edges = {"row": row[once], "column": adjacency.indices[once].astype(np.int32)}
            safetensors.numpy.save_file(edges, folder / "graph.safetensors")
    made["seen"] = found["seen"]
    safetensors.torch.save_file({name: x.contiguous() for name, x in made.items()}, folder / FILE)


def _graph(config: knobs.Graph, data: Prepared, known: Tensor, told: Tensor) -> Any:
    """The normalised adjacency of items, from training interactions or vectors made of them."""
    if config.source in ("text", "items"):
        weights = graph.neighbours(told if config.source == "text" else known, config.top_k or _NEIGHBOURS)
        if config.self_loops:
            weights.setdiag(1)
        return graph.normalise(weights, in_place=True)
    item, start = data.training()
    if config.source == "session":
        start = graph.sessions(start, data.time[data.is_train()], config.gap_hours * _HOUR)
    weights = graph.cooccurrence(
        item,
        start,
        data.n_items,
        window=config.window,
        weighting=config.weighting,
        top_k=config.top_k,
        self_loops=config.self_loops,
    )
    return graph.normalise(weights, in_place=True)


def backbone_of(work: Work) -> Path:
    """The folder of the config's language model, checked; made now where it is the small one, or a random twin."""
    model = work.config.model
    assert isinstance(model, knobs.Frellm)
    check_sessions(model.graph, work.data)  # before anything is trained
    place, root = model.backbone, work.config.data.root
    folder = work.ranks.main_first(partial(llm.locate, place.path, place.revision, root, work.data))
    work.ranks.main_first(partial(pretrained.check_use, folder, place, model.max_len))
    if place.init == "random":
        return work.ranks.main_first(partial(llm.twin, folder, place.dtype, work.config.seed, root))
    return folder
