"""distrec plan [FILE.yaml …] [section.key=value …] [processes=1,8,64] [gpu=h100] [zero=0]

What a training run will take before anything is asked of a cluster: memory of a process, disk, time and cost.  No weight is
read and no tensor is made; of a language model config.json is enough.

  processes=1,8        how many, several to compare          per_node=8    of them in a machine
  gpu=h100             h200, a100, l40s, rtx4090; cpu: this machine, measured now
  memory_gib=… tflops=… gb_s=…   its memory, peak (of the type that the backbone computes in) and exchange, where they differ
  mfu=0.4              share of the peak that a run reaches (metrics.jsonl of a short run tells it)
  zero=0               stage of ZeRO; 0: a copy of the model on each process   offload=true: its optimiser in the host's memory
  usd_hour=…           price of a process's GPU
  items=… users=… interactions=…   sizes of a catalogue that is not there (default: the config's data, prepared now)

Example:  distrec plan configs/data/beauty.yaml configs/model/frellm_causal.yaml model.backbone.path=configs/backbone/qwen2.5-7b processes=1,8

Exit codes: 0 at least one of the shapes fits · 1 none does · 2 wrong usage or input.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field

from distrec import config as cfg
from distrec import knobs
from distrec.engine import budget, compatibility
from distrec.engine.budget import CONTEXT, DEVICES, SLACK, Device, Weights
from distrec.engine.checkpoint import KEEP
from distrec.engine.exact import CHUNK
from distrec.engine.meter import matmul_speed
from distrec.engine.rehearsal import Ranked, Rehearsal
from distrec.engine.scoring import BLOCK
from distrec.jobs.parts.sizing import Sizes, decoder, kind_of, sizes, sketched, weights
from distrec.runtime import DONE, FAILED, run
from distrec.settings import Schema

_GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """The job's own words."""

    __pydantic_config__: ClassVar[ConfigDict] = knobs.STRICT
    processes: Annotated[tuple[knobs.AtLeastOne, ...], Field(min_length=1)] = (1, 8)
    per_node: knobs.AtLeastOne = 8
    gpu: Literal["h200", "h100", "a100", "l40s", "rtx4090", "cpu"] = "h100"
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
    """The config's model: its weights, a rehearsal of its passes, and what ranking a block of users takes."""

    weights: Weights
    rehearsal: Rehearsal
    own: int  # bytes of the rehearsed one
    vectors: int  # bytes of the items' vectors, and of other tensors that are not trained
    ranked: Ranked
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
        return max(self.training, self.ranking) * SLACK + CONTEXT[kind] * _GIB


def main(argv: Sequence[str]) -> int:
    own = {name: arg for arg in argv if (name := arg.partition("=")[0]) in Cluster.__slots__}
    if "processes" in own:
        own["processes"] = f"processes=[{own['processes'].partition('=')[2].strip('[]()')}]"
    cluster = Schema(Cluster, {}).load(list(own.values()))
    config = cfg.load([arg for arg in argv if arg.partition("=")[0] not in own])
    compatibility.check(cluster.zero, False, getattr(config.model, "backbone", None))
    at = device(cluster)
    with TemporaryDirectory() as scratch:
        folder = decoder(config, Path(scratch))
        data = sizes(config, (cluster.items, cluster.users, cluster.interactions))
        model = rehearsed(config, data, folder, cluster.kind)
    plans = [plan(config, cluster, at, data, model, size) for size in cluster.processes]
    print("\n".join([*_head(config, cluster, at, data, model), *_table(config, cluster, at, data, plans)]))
    print("\n".join(_disk(config, data, model)))
    fits = [each.held(cluster.kind) <= at.gib * _GIB for each in plans]
    if not any(fits):
        print(f"nothing fits: {_way_out(config, cluster, plans[-1])}")
    return DONE if any(fits) else FAILED


def rehearsed(config: cfg.Config, data: Sizes, folder: Path, kind: str) -> Model:
    """Raises: ValueError for a model without anything to train."""
    sketch = sketched(config, data.items, folder)
    held = weights(config, sketch)
    rehearsal = Rehearsal(sketch, data.items)
    vectors = sum(buffer.nbytes for buffer in sketch.buffers())
    own = vectors + sum(parameter.nbytes for parameter in sketch.parameters())
    chunk = min(data.items, CHUNK[kind])
    return Model(held, rehearsal, own, vectors, rehearsal.rank(min(BLOCK, data.users), data.longest, chunk), chunk)


def plan(config: cfg.Config, cluster: Cluster, at: Device, data: Sizes, model: Model, size: int) -> Plan:
    """Of `size` processes."""
    train, held, ranked = config.train, model.weights, model.ranked
    last_only = kind_of(config) == "prefixes"
    counted = int(getattr(config.model, "max_len", 1)) if last_only else data.longest
    rows = max(1, train.batch_tokens // counted)
    pieces = -(-rows // (max(1, train.micro_tokens // counted) * size))
    here = -(-rows // (size * pieces))
    taken, flops = model.rehearsal.train(here, data.longest, last_only, pieces, train.precision == "bf16")
    parts = budget.memory(held, cluster.zero, size, cluster.offload) | {"item vectors": float(model.vectors)}
    holders = size if config.score.shard_items else 1
    share = min(data.items, math.ceil(math.ceil(data.items / model.chunk) / holders) * model.chunk)  # whole chunks
    table = float(ranked.per_item * share)
    lasting = sum(parts.values()) - parts["gradients"]
    ranking = lasting + ranked.taken.peak - model.own + table - ranked.per_item * model.chunk + held.widest
    # the rehearsal counts gradients whole, beside activations that die as they come
    parts["activations"] = max(0.0, taken.peak - model.own - 12.0 * held.trained - taken.scores) + held.widest
    parts["scores"] = float(taken.scores)
    parts["optimiser's scratch"] = taken.scratch / (size if cluster.zero else 1)
    blocks = -(-data.users // BLOCK)
    evaluation = budget.total(
        budget.scaled(ranked.table, share / model.chunk),
        budget.scaled(ranked.users, -(-blocks // size)),
        budget.scaled(ranked.chunk, -(-blocks * holders // size) * share / model.chunk),
    )
    return Plan(
        size,
        parts,
        ranking,
        table,
        pieces * budget.seconds(flops, at, cluster.mfu),
        budget.exchange(held, cluster.zero, size, at, cluster.per_node, pieces),
        budget.seconds(evaluation, at, cluster.mfu),
    )


def device(cluster: Cluster) -> Device:
    """As the data sheet has it, or this machine; with what was told otherwise."""
    if cluster.gpu == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
        speed = matmul_speed(torch.device("cpu"), torch.float32)
        found = Device(memory, matmul_speed(torch.device("cpu"), torch.bfloat16), speed, 2e9, 1e9)
    else:
        found = DEVICES[cluster.gpu]
    if cluster.memory_gib:
        found = replace(found, gib=cluster.memory_gib)
    if cluster.tflops:
        found = replace(found, bf16=1e12 * cluster.tflops, float32=1e12 * cluster.tflops)
    if cluster.gb_s:
        found = replace(found, inside=1e9 * cluster.gb_s, between=1e9 * cluster.gb_s)
    return found


def _head(config: cfg.Config, cluster: Cluster, at: Device, data: Sizes, model: Model) -> list[str]:
    held = model.weights
    frozen = f"{held.elements / 1e9:.2f} billion frozen weights, " if held.elements else ""
    return [
        f"{config.model.name}: {frozen}{held.trained / 1e6:.2f} million trained",
        f"{data.items:,} items, {data.users:,} users, {data.interactions:,} interactions; {data.samples:,} samples of up to "
        f"{data.longest} places, {data.steps:,} steps an epoch",
        f"{cluster.gpu}: {at.gib:.0f} GiB, {at.bf16 / 1e12:.4g} TFLOP/s in bfloat16, {at.float32 / 1e12:.4g} in float32, of which "
        f"{cluster.mfu:.0%} are reached (mfu); " + (f"ZeRO-{cluster.zero}" if cluster.zero else "copies of the model"),
    ]


def _table(config: cfg.Config, cluster: Cluster, at: Device, data: Sizes, plans: Sequence[Plan]) -> list[str]:
    train = config.train
    rounds = -(-train.epochs // train.eval_epochs) + 1
    hours = [
        (train.epochs * data.steps * (each.step + each.exchange) + rounds * each.evaluation) / 3600 for each in plans
    ]
    rows: dict[str, list[str]] = {"processes": [f"{each.size:,}" for each in plans]}
    for name in plans[0].parts:
        rows[f"  {name}, GiB"] = [f"{each.parts[name] / _GIB:.2f}" for each in plans]
    rows["training, GiB"] = [f"{each.training / _GIB:.2f}" for each in plans]
    rows["  item table, GiB"] = [f"{each.table / _GIB:.2f}" for each in plans]
    rows["ranking, GiB"] = [f"{each.ranking / _GIB:.2f}" for each in plans]
    held = [each.held(cluster.kind) / _GIB for each in plans]
    rows["  with driver and slack, GiB"] = [f"{gib:.2f}" for gib in held]
    rows[f"  fits in {at.gib:.0f} GiB"] = ["yes" if gib <= at.gib else "NO" for gib in held]
    rows["step, s"] = [f"{each.step + each.exchange:.3g}" for each in plans]
    rows["  of it exchange"] = [f"{each.exchange / (each.step + each.exchange):.0%}" for each in plans]
    rows["evaluation, s"] = [f"{each.evaluation:.3g}" for each in plans]
    rows["epoch, h"] = [f"{data.steps * (each.step + each.exchange) / 3600:.3g}" for each in plans]
    rows[f"run of {train.epochs} epochs, h"] = [f"{each:.3g}" for each in hours]
    rows["processes × hours"] = [f"{each.size * h:.3g}" for each, h in zip(plans, hours, strict=True)]
    if cluster.usd_hour:
        rows["  USD"] = [f"{each.size * h * cluster.usd_hour:,.0f}" for each, h in zip(plans, hours, strict=True)]
    return [f"{name:<30}" + "".join(f"{cell:>10}" for cell in cells) for name, cells in rows.items()]


def _disk(config: cfg.Config, data: Sizes, model: Model) -> list[str]:
    """What a run writes; a backbone from the hub lies in its cache."""
    checkpoint = 12.0 * model.weights.trained
    parts = {
        "prepared data": 12.0 * data.interactions
        + 100.0 * (data.users + data.items)
        + 4.0 * config.data.negatives * data.users,
        "item vectors": 2.0 * model.vectors,  # as embedded, and as smoothed
        f"{KEEP + 1} checkpoints": (KEEP + 1) * checkpoint,
        "backbone": float(model.weights.frozen),
    }
    told = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in parts.items() if size)
    return [f"disk, GiB: {sum(parts.values()) / _GIB:.2f} ({told})"]


def _way_out(config: cfg.Config, cluster: Cluster, plan: Plan) -> str:
    """What makes the largest part smaller."""
    if plan.ranking > plan.training:
        return "ranking takes most: score.shard_items=true cuts the item table over the processes"
    is_frellm = isinstance(config.model, knobs.Frellm)
    of_training = sum(plan.parts[name] for name in ("trained", "gradients", "optimiser", "optimiser's scratch"))
    ways = {
        "zero=2, or more processes with it" if cluster.zero < 2 else "more processes": of_training,
        "model.backbone.dtype=bfloat16, model.backbone.quantise=nf4, or zero=3": plan.parts["frozen"],
        "fewer dimensions of the items' vectors (embed.…)": plan.parts["item vectors"],
        "a smaller train.micro_tokens"
        + (", model.backbone.checkpointing=true, model.loss=sampled" if is_frellm else ""): plan.parts["activations"]
        + plan.parts["scores"],
    }
    return max(ways, key=lambda way: ways[way])


if __name__ == "__main__":
    run(main, __doc__)
