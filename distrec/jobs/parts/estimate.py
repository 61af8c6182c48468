"""What a run will take on each process of a cluster, reckoned from a rehearsal of its passes."""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field

from distrec import config as cfg
from distrec import knobs
from distrec.engine.costs import budget
from distrec.engine.costs.budget import CONTEXT, SLACK, Weights
from distrec.engine.costs.cards import DEVICES, Device
from distrec.engine.costs.meter import matmul_speed
from distrec.engine.costs.rehearsal import Ranked, Rehearsal
from distrec.engine.evaluation.exact import CHUNK
from distrec.engine.evaluation.scoring import BLOCK
from distrec.jobs.parts.sizing import Sizes, sketched, weights

GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """The job's own words."""

    __pydantic_config__: ClassVar[ConfigDict] = knobs.STRICT
    processes: Annotated[tuple[knobs.AtLeastOne, ...], Field(min_length=1)] = (1, 8)
    per_node: knobs.AtLeastOne = 8
    gpu: Literal[
        "b200", "h200", "h100", "h100_pcie", "a100", "a100_40", "l40s", "l4", "a6000", "rtx4090", "v100", "cpu"
    ] = "h100"
    memory_gib: knobs.Positive | None = None
    tflops: knobs.Positive | None = None
    gb_s: knobs.Positive | None = None
    mfu: Annotated[float, Field(gt=0, le=1)] = 0.4
    zero: Literal[0, 1, 2, 3] = 0
    offload: bool = False
    usd_hour: knobs.NotNegative = 0.0
    items: knobs.AtLeastOne | None = None
    users: knobs.AtLeastOne | None = None
    interactions: knobs.AtLeastOne | None = None

    @property
    def kind(self) -> Literal["cpu", "cuda"]:
        return "cpu" if self.gpu == "cpu" else "cuda"


@dataclass(frozen=True)
class Model:
    """The config's model: its weights, a rehearsal of its passes, and what ranking a block of users takes.

    `longest`: of users whose histories are as long as any; `usual`: as long as the mean, which time is about.
    """

    weights: Weights
    rehearsal: Rehearsal
    own: int  # bytes of the rehearsed one
    vectors: int  # bytes of the items' vectors, and of other tensors that are not trained
    longest: Ranked
    usual: Ranked
    chunk: int


@dataclass(frozen=True)
class Plan:
    """Of one number of processes: bytes by part while training, of all parts while ranking and of the item table; seconds."""

    size: int
    parts: dict[str, float]
    ranking: float
    table: float
    step: float
    exchange: float
    evaluation: float

    @property
    def training(self) -> float:
        return sum(self.parts.values())

    def held(self, kind: str) -> float:
        """Bytes of the device, at most, with what a driver and an allocator take beside."""
        return max(self.training, self.ranking) * SLACK[kind] + CONTEXT[kind] * GIB


def rehearsed(config: cfg.Config, data: Sizes, folder: Path, kind: str) -> Model:
    """Raises: ValueError for a model without anything to train."""
    sketch = sketched(config, data.items, folder)
    held = weights(config, sketch)
    rehearsal = Rehearsal(sketch, data.items)
    vectors = sum(buffer.nbytes for buffer in sketch.buffers())
    own = vectors + sum(parameter.nbytes for parameter in sketch.parameters())
    chunk, block = min(data.items, CHUNK[kind]), min(BLOCK, data.users)
    longest, usual = (rehearsal.rank(block, width, chunk) for width in (data.longest, math.ceil(data.history)))
    return Model(held, rehearsal, own, vectors, longest, usual, chunk)


def plan(config: cfg.Config, cluster: Cluster, at: Device, data: Sizes, model: Model, size: int) -> Plan:
    """Of `size` processes."""
    held, (pieces, taken) = model.weights, _training(config, cluster, data, model, size)
    parts = budget.memory(held, cluster.zero, size, cluster.offload) | {"item vectors": float(model.vectors)}
    table, ranking = _ranking(config, data, model, size)
    ranking += sum(parts.values()) - parts["gradients"]
    # gradients lie whole beside the activations, but under ZeRO-2 and 3, which take each as it comes
    whole = 12.0 * held.trained if cluster.zero < 2 else 0.0
    parts["activations"] = max(0.0, taken.peak - model.own - whole - taken.scores) + held.widest
    parts["scores"] = float(taken.scores)
    parts["optimiser's scratch"] = taken.scratch / (size if cluster.zero else 1)
    step = _flops(config, data, model, size)
    updates = budget.update(held, at, size if cluster.zero else 1)
    return Plan(
        size,
        parts,
        ranking,
        table,
        budget.seconds(step, at, cluster.mfu, config.train.precision) + updates,
        budget.exchange(held, cluster.zero, size, at, cluster.per_node, pieces),
        budget.seconds(_evaluation(config, data, model, size), at, cluster.mfu, config.train.precision),
    )


def _training(config: cfg.Config, cluster: Cluster, data: Sizes, model: Model, size: int) -> tuple[int, Any]:
    """(passes of a step, what they take on a process at most)."""
    train = config.train
    counted = int(getattr(config.model, "max_len", 1)) if data.last_only else data.longest
    rows = max(1, train.batch_tokens // counted)
    pieces = -(-rows // (max(1, train.micro_tokens // counted) * size))
    here = -(-rows // (size * pieces))
    frees = cluster.zero >= 2
    taken, _ = model.rehearsal.train(here, data.longest, data.last_only, pieces, train.precision == "bf16", frees)
    return pieces, taken


def _flops(config: cfg.Config, data: Sizes, model: Model, size: int) -> budget.Flops:
    """Of a usual step on a process: as many rows, as long, as they are in the mean."""
    rows = max(1, round(data.samples / data.steps / size))
    _, flops = model.rehearsal.train(rows, math.ceil(data.width), data.last_only, 1, config.train.precision == "bf16")
    return flops


def _ranking(config: cfg.Config, data: Sizes, model: Model, size: int) -> tuple[float, float]:
    """Bytes (of the item table, of everything that ranking takes beside what lasts)."""
    share, ranked = _share(config, data, model, size), model.longest
    table = float(ranked.per_item * share)
    return table, ranked.taken.peak - model.own + table - ranked.per_item * model.chunk + model.weights.widest


def _evaluation(config: cfg.Config, data: Sizes, model: Model, size: int) -> budget.Flops:
    """Of ranking all users, on a process."""
    share, ranked, blocks = _share(config, data, model, size), model.usual, -(-data.users // BLOCK)
    holders = size if config.score.shard_items else 1
    return budget.total(
        budget.scaled(ranked.table, share / model.chunk),
        budget.scaled(ranked.users, -(-blocks // size)),
        budget.scaled(ranked.chunk, -(-blocks * holders // size) * share / model.chunk),
    )


def _share(config: cfg.Config, data: Sizes, model: Model, size: int) -> int:
    """Items that a process ranks: all, or whole chunks of them."""
    holders = size if config.score.shard_items else 1
    return min(data.items, math.ceil(math.ceil(data.items / model.chunk) / holders) * model.chunk)


def device(cluster: Cluster, size: int = 1) -> Device:
    """As the data sheet has it, or a process's share of this machine; with what was told otherwise."""
    if cluster.gpu == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
        here = min(size, cluster.per_node)
        bf16, float32 = (matmul_speed(torch.device("cpu"), kind) / here for kind in (torch.bfloat16, torch.float32))
        found = Device(memory / here, bf16, float32, float32, 2e9, 1e9, 2e10 / here)
    else:
        found = DEVICES[cluster.gpu]
    if cluster.memory_gib:
        found = replace(found, gib=cluster.memory_gib)
    if cluster.tflops:
        rate = 1e12 * cluster.tflops
        found = replace(found, bf16=rate, tf32=rate, float32=rate)
    if cluster.gb_s:
        found = replace(found, inside=1e9 * cluster.gb_s, between=1e9 * cluster.gb_s)
    return found
