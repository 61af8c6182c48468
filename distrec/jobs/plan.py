"""distrec plan [FILE.yaml …] [section.key=value …] [processes=1,8,64] [gpu=h100] [zero=0]

What a training run will take before anything is asked of a cluster: memory of a process, disk, time and cost.  No weight is
read and no tensor is made; of a language model config.json is enough.

  processes=1,8        how many, several to compare          per_node=8    of them in a machine
  gpu=h100             b200, h200, h100_pcie, a100 (80 GB), a100_40, l40s, l4, a6000, rtx4090, v100; cpu: this machine, measured now
  memory_gib=… tflops=… gb_s=…   its memory, peak (of the type that the backbone computes in) and exchange, where they differ
  mfu=0.4              share of the peak that a run reaches (metrics.jsonl of a short run tells it)
  zero=0               stage of ZeRO; 0: a copy of the model on each process   offload=true: its optimiser in the host's memory
  usd_hour=…           price of a process's GPU
  items=… users=… interactions=…   sizes of a catalogue that is not there (default: the config's data, prepared now)

Example:  distrec plan configs/data/beauty.yaml configs/model/frellm_causal.yaml model.backbone.path=configs/backbone/qwen2.5-7b processes=1,8

Exit codes: 0 at least one of the shapes fits · 1 none does · 2 wrong usage or input.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from distrec import config as cfg
from distrec import knobs
from distrec.engine import compatibility
from distrec.engine.checkpoint import KEEP
from distrec.engine.costs.cards import Device
from distrec.jobs.parts.estimate import GIB, Cluster, Model, Plan, device, plan, rehearsed
from distrec.jobs.parts.sizing import Sizes, decoder, samples_of, sizes, stored
from distrec.runtime import DONE, FAILED, log, run
from distrec.settings import Schema


def main(argv: Sequence[str]) -> int:
    cluster, config = words(argv)
    compatibility.check(cluster.zero, False, getattr(config.model, "backbone", None))
    if cluster.offload and not cluster.zero:
        raise ValueError("offload=true is DeepSpeed's: zero=1, 2 or 3 with it")
    with TemporaryDirectory() as scratch:
        folder = decoder(config, Path(scratch))
        data = sizes(config, (cluster.items, cluster.users, cluster.interactions), samples_of(config, folder))
        log("rehearsing (a full softmax over very many items takes minutes: model.loss)")
        model = rehearsed(config, data, folder, cluster.kind)
        backbone = stored(config, folder)
    devices = [device(cluster, size) for size in cluster.processes]
    plans = [plan(config, cluster, at, data, model, size) for at, size in zip(devices, cluster.processes, strict=True)]
    fits = [each.held(cluster.kind) <= at.gib * GIB for each, at in zip(plans, devices, strict=True)]
    told = [
        *_head(config, cluster, devices[0], data, model),
        *_memory(cluster, plans, devices),
        *_time(config, cluster, data, plans),
    ]
    print("\n".join([*told, _disk(config, data, model, backbone), *_left_out(config)]))
    if not any(fits):
        print(f"nothing fits: {_way_out(config, cluster, model, plans[-1])}")
    return DONE if any(fits) else FAILED


def words(argv: Sequence[str]) -> tuple[Cluster, cfg.Config]:
    """The job's own words, and those of the config."""
    own = {name: arg for arg in argv if (name := arg.partition("=")[0]) in Cluster.__slots__}
    if "processes" in own:
        own["processes"] = re.sub(r"=\[?([^\]]*)\]?$", r"=[\1]", own["processes"])
    cluster = Schema(Cluster, {}).load(list(own.values()))
    return cluster, cfg.load([arg for arg in argv if arg.partition("=")[0] not in own])


def _head(config: cfg.Config, cluster: Cluster, at: Device, data: Sizes, model: Model) -> list[str]:
    held = model.weights
    frozen = f"{held.elements / 1e9:.2f} billion frozen weights, " if held.elements else ""
    precision: str = config.train.precision
    rate = f"{at.peak(torch.float32, precision) / 1e12:.4g}"
    float32 = f"{rate} in float32" + (" by TF32 products (train.precision=tf32)" if precision == "tf32" else "")
    return [
        f"{config.model.name}: {frozen}{held.trained / 1e6:.2f} million trained",
        f"{data.items:,} items, {data.users:,} users, {data.interactions:,} interactions; {data.samples:,} samples of up to "
        f"{data.longest} places, {data.width:.1f} with padding in the mean; {data.steps:,} steps an epoch",
        f"{cluster.gpu}: {at.gib:.0f} GiB, {at.bf16 / 1e12:.4g} TFLOP/s in bfloat16, {float32}, of which "
        f"{cluster.mfu:.0%} are reached (mfu); " + (f"ZeRO-{cluster.zero}" if cluster.zero else "copies of the model"),
    ]


def _memory(cluster: Cluster, plans: Sequence[Plan], devices: Sequence[Device]) -> list[str]:
    unit, size = ("GiB", GIB) if max(each.training for each in plans) > GIB else ("MiB", 2**20)
    rows: dict[str, list[float]] = {f"  {name}": [each.parts[name] for each in plans] for name in plans[0].parts}
    rows["training"] = [each.training for each in plans]
    rows["ranking"] = [each.ranking for each in plans]
    rows["  of it item table"] = [each.table for each in plans]
    rows["at most, with driver and slack"] = [each.held(cluster.kind) for each in plans]
    lines = [_line(f"{name}, {unit}", [f"{cell / size:.2f}" for cell in cells]) for name, cells in rows.items()]
    fits = [each.held(cluster.kind) <= at.gib * GIB for each, at in zip(plans, devices, strict=True)]
    return [
        _line("processes", [f"{each.size:,}" for each in plans]),
        *lines,
        _line("  fits", ["yes" if fit else "NO" for fit in fits]),
    ]


def _time(config: cfg.Config, cluster: Cluster, data: Sizes, plans: Sequence[Plan]) -> list[str]:
    train = config.train
    rounds = -(-train.epochs // train.eval_epochs) + 1
    hours = [
        (train.epochs * data.steps * (each.step + each.exchange) + rounds * each.evaluation) / 3600 for each in plans
    ]
    rows = {
        "step, s": [f"{each.step + each.exchange:.3g}" for each in plans],
        "  of it exchange": [f"{each.exchange / (each.step + each.exchange):.0%}" for each in plans],
        "evaluation, s": [f"{each.evaluation:.3g}" for each in plans],
        "epoch, h": [f"{data.steps * (each.step + each.exchange) / 3600:.3g}" for each in plans],
        f"run of {train.epochs} epochs, h": [f"{each:.3g}" for each in hours],
        "processes × hours": [f"{each.size * h:.3g}" for each, h in zip(plans, hours, strict=True)],
    }
    if cluster.usd_hour:
        rows["  USD"] = [f"{each.size * h * cluster.usd_hour:,.0f}" for each, h in zip(plans, hours, strict=True)]
    return [_line(name, cells) for name, cells in rows.items()]


def _line(name: str, cells: Sequence[str]) -> str:
    return f"{name:<36}" + "".join(f"{cell:>10}" for cell in cells)


def _disk(config: cfg.Config, data: Sizes, model: Model, backbone: int) -> str:
    """What a run writes and reads; a backbone from the hub lies in its cache."""
    kept = KEEP + 2  # the latest, the best, and one that is being written
    parts = {
        "prepared data": 12.0 * data.interactions
        + 100.0 * (data.users + data.items)
        + 4.0 * config.data.negatives * data.users,
        "item vectors": 2.0 * model.vectors,  # as embedded, and as smoothed
        f"{kept} checkpoints": kept * 12.0 * model.weights.trained,
        "backbone": float(backbone),
    }
    told = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)
    return f"disk, GiB: {sum(parts.values()) / GIB:.2f} ({told})"


def _left_out(config: cfg.Config) -> list[str]:
    parts = {
        knobs.Frellm: "the SASRec whose vectors it reads, embedding the texts, the graph",
        knobs.Tiger: "embedding the texts, codes",
        knobs.Tone: "embedding the texts, codes",
    }
    missing = parts.get(type(config.model))
    return [f"not counted: {missing}" + (", unless they are there" if missing else "")] if missing else []


def _way_out(config: cfg.Config, cluster: Cluster, model: Model, plan: Plan) -> str:
    """What makes the largest part smaller."""
    is_frellm, parts = isinstance(config.model, knobs.Frellm), plan.parts
    if plan.ranking > plan.training:
        if plan.table > plan.ranking / 2 and not config.score.shard_items:
            return "ranking takes most: score.shard_items=true cuts the item table over the processes"
        return f"ranking takes {plan.ranking / GIB:.2f} GiB, beside which there is no room"
    of_training = sum(parts[name] for name in ("trained", "gradients", "optimiser", "optimiser's scratch"))
    passes = "a smaller train.micro_tokens"
    if is_frellm and not model.rehearsal.model.backbone.config.checkpointing:
        passes += ", model.backbone.checkpointing=true"
    if not is_frellm and parts["activations"] > 4.0 * model.weights.trained:
        passes = "fewer dimensions (model.d_model): each use of the item embedding has a gradient of its size"
    ways = {
        "zero=2, or more processes with it" if cluster.zero < 2 else "more processes": of_training,
        "model.backbone.dtype=bfloat16, model.backbone.quantise=nf4, or zero=3": parts["frozen"],
        "fewer dimensions of the items' vectors (embed.…)": parts["item vectors"],
        passes: parts["activations"] + parts["scores"],
    }
    return max(ways, key=lambda way: ways[way])


if __name__ == "__main__":
    run(main, __doc__)
