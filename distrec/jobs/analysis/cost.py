"""What a usual training batch takes, part by part: time and FLOPs; and how much memory weights and passes need."""

from contextlib import nullcontext
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from distrec.data import batches
from distrec.data.batches import Batch
from distrec.engine.costs import anatomy
from distrec.engine.costs.rehearsal import Ledger
from distrec.jobs.analysis.subject import Part, Subject
from distrec.jobs.pages import picture
from distrec.jobs.pages.page import Picture, Section, Table, Text
from distrec.models.build import is_trained
from distrec.models.parts import parts_of

_TITLE = "Time and memory by part"
_WARM, _STEPS = 2, 5
_MIB = 2**20


def cost(subject: Subject) -> Part:
    """Medians over some passes, forward and backward; the model is left as it was, without gradients."""
    model = subject.model
    if not is_trained(model):
        return Part(Section(_TITLE, (Text("This model counts: there is no training step to take apart."),)), {})
    batch, n_pieces = _usual(subject)
    was_training = model.training
    model.train()
    try:
        with torch.random.fork_rng(devices=[subject.device] if subject.device.type == "cuda" else []):
            time, step, under = _time(subject, batch)
            flops = _flops(subject, batch)
            memory = _memory(subject, batch)
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
    shape = {"users": len(batch.user), "positions": batch.items.shape[1], "pieces": n_pieces}
    figures = {"batch": shape, "seconds": time, "flops": flops, "step": step, "profiled": under, "bytes": memory}
    return Part(Section(_TITLE, _blocks(subject, figures)), figures)


def _usual(subject: Subject) -> tuple[Batch, int]:
    """(the first piece of the step with as many positions as the median step has, how many pieces it has)."""
    config, model = subject.config.train, subject.model
    samples = batches.training(subject.data, config.samples or model.samples, model.max_len)
    steps = batches.steps(samples, config.batch_tokens, subject.config.seed, 0)
    rows = sorted(steps, key=lambda rows: len(rows) * int(samples.lengths(rows).max()))[len(steps) // 2]
    pieces = batches.micro_batches(subject.data, samples, rows, config.micro_tokens, 0, 1)
    return pieces[0].to(subject.device), len(pieces)


def _loss(subject: Subject, batch: Batch) -> Tensor:
    is_mixed = subject.config.train.precision == "bf16"
    with torch.autocast(subject.device.type, torch.bfloat16) if is_mixed else nullcontext():
        return subject.model(batch)


def _time(subject: Subject, batch: Batch) -> tuple[dict[str, float], float, float]:
    """(seconds by part, with the rest; of a bare pass; of one under the profiler)."""
    bare = []
    for _ in range(_WARM + _STEPS):
        began = perf_counter()
        _loss(subject, batch).backward()
        if subject.device.type == "cuda":
            torch.cuda.synchronize(subject.device)
        bare.append(perf_counter() - began)
    parts = parts_of(subject.model)
    found = [
        anatomy.seconds(subject.model, parts, lambda: _loss(subject, batch), subject.device)
        for _ in range(_WARM + _STEPS)
    ][_WARM:]
    whole = median(whole for _, whole in found)
    taken = {name: median(each.get(name, 0.0) for each, _ in found) for name in found[0][0]}
    return {**taken, anatomy.REST: max(0.0, whole - sum(taken.values()))}, median(bare[_WARM:]), whole


def _flops(subject: Subject, batch: Batch) -> dict[str, float]:
    with anatomy.Frames(subject.model, parts_of(subject.model)) as frames, anatomy.Flops(frames) as counting:
        loss = _loss(subject, batch)
        frames.is_on = False
        loss.backward()
    return counting.taken


def _memory(subject: Subject, batch: Batch) -> dict[str, int]:
    model = subject.model
    model.zero_grad(set_to_none=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with Ledger(model, -1) as ledger:
        own = ledger.now
        _loss(subject, batch).backward()
        peak = ledger.taken().peak
    return {
        "trained weights": sum(parameter.nbytes for parameter in trained),
        "frozen weights": sum(p.nbytes for p in model.parameters() if not p.requires_grad),
        "buffers": sum(buffer.nbytes for buffer in model.buffers()),
        "AdamW's two moments": sum(2 * parameter.nbytes for parameter in trained),
        "passes at their peak": peak - own,
    }


def _blocks(subject: Subject, figures: dict[str, Any]) -> tuple[Any, ...]:
    time, flops, shape, whole = (figures[key] for key in ("seconds", "flops", "batch", "profiled"))
    total = max(1.0, sum(flops.values()))
    rows = tuple(
        (name, 1e3 * value, value / whole, flops.get(name, 0.0) / 1e9, flops.get(name, 0.0) / total)
        for name, value in time.items()
    )
    piece = f"the first of {shape['pieces']} pieces of a step" if shape["pieces"] > 1 else "a step"
    said = Text(
        f"{piece[0].upper()}{piece[1:]} of the usual size, {shape['users']:,} histories of {shape['positions']} places, on "
        f"{subject.device.type}, forward and backward: {1e3 * figures['step']:.1f} ms, {1e3 * whole:.1f} ms under torch's "
        f"profiler, which the parts' times are of (medians of {_STEPS} after {_WARM} to warm up). A part's backward time "
        "is that of its forward operators' gradients; rest: sums of gradients, and what lies between operators."
    )
    table = Table(
        ("part", "ms", "share of time", "GFLOP", "share of FLOPs"),
        (*rows, ("whole", 1e3 * whole, 1.0, sum(flops.values()) / 1e9, 1.0)),
        "FLOPs: of matrix products and attention.",
        digits=3,
    )
    memory = Table(
        ("of memory", "MiB"),
        tuple((name, size / _MIB) for name, size in figures["bytes"].items()),
        "Passes at their peak: activations, gradients and what operators make on the way, beyond weights and buffers.",
        digits=2,
    )
    return said, table, _draw(subject, time, whole), memory


def _draw(subject: Subject, time: dict[str, float], whole: float) -> Picture:
    figure, axes = picture.new(height=0.9 + 0.32 * len(time))
    names = list(time)[::-1]
    shares = [time[name] / whole for name in names]
    bars = axes.barh(names, [100 * share for share in shares], color=picture.COLOURS[0], height=0.65)
    axes.bar_label(bars, [f" {share:.0%}" for share in shares], color=picture.INK, fontsize=8)
    axes.margins(x=0.12)
    picture.name(axes, "share of a step's forward and backward time (%)", "")
    picture.save(figure, subject.folder, "cost")
    most = max(time, key=lambda name: time[name])
    return Picture("cost", f"Where a training step's time goes, part by part; the most to {most}.")
