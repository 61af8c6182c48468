"""What the model's parts learnt, evaluation by evaluation: σ of the filter, cutoffs, α and ranks of the added matrices."""

import json
import re
from typing import Any

from distrec.jobs.analysis.subject import Part, Subject
from distrec.jobs.pages import picture
from distrec.jobs.pages.page import Picture, Section, Table, Text

_TITLE = "What was learnt over training"
_KIND = re.compile(
    r"(?:(?P<part>.+)\.)?(?P<kind>sigma|lm_alpha|rank@.+|effective_rank)|(?P<cutoff>cutoff)\.(?P<layer>\d+)"
)
_SAID = {
    "sigma": "σ of the Gaussian filter (tokens)",
    "cutoff": "cutoff of the temporal filter (share of Nyquist)",
    "lm_alpha": "α of the added matrix",
    "effective_rank": "effective rank of softplus(M)",
}
Curves = dict[str, dict[str, list[tuple[int, float]]]]  # kind → part → (epoch, value)


def learnt(subject: Subject) -> Part:
    """Curves of each kind over epochs, and a table of first and last values; the first before the first step."""
    curves = _curves((subject.out / "metrics.jsonl").read_text(encoding="utf-8"))
    if not curves:
        return Part(Section(_TITLE, (Text("No part of this model learns a figure that its journal tells of."),)), {})
    rows = tuple(
        (said(kind), part, values[0][1], values[-1][1], values[-1][1] - values[0][1])
        for kind, parts in curves.items()
        for part, values in parts.items()
    )
    first, last = (_epochs(curves)[i] for i in (0, -1))
    table = Table(("what", "part", f"epoch {first}", f"epoch {last}", "change"), rows)
    pictures = tuple(_draw(subject, kind, parts) for kind, parts in curves.items() if len(_epochs({kind: parts})) > 1)
    return Part(Section(_TITLE, (table, *pictures)), curves)


def said(kind: str) -> str:
    return _SAID.get(kind) or f"rank of softplus(M), tolerance {kind.partition('@')[2]}"


def short(name: str) -> str:
    """A layer as readers see it: crfa.real.layers.0.attention.rpml is `crfa.real 0`, blocks.1 `layer 1`."""
    found = re.sub(r"\.?(layers|blocks)\.(\d+)(\..+)?$", r" \2", name)
    return f"layer{found}" if found.startswith(" ") else found


def _curves(journal: str) -> Curves:
    found: Curves = {}
    for line in map(json.loads, journal.splitlines()):
        for name, value in line.get("learnt", {}).items():
            kind, part = _split(name)
            found.setdefault(kind, {}).setdefault(part, []).append((int(line["epoch"]), float(value)))
    return found


def _split(name: str) -> tuple[str, str]:
    """(kind, part) of a fact's name."""
    match = _KIND.fullmatch(name)
    if match is None:
        return name, ""
    if match["cutoff"]:
        return "cutoff", f"layer {match['layer']}"
    return match["kind"], short(match["part"] or "")


def _epochs(curves: Curves) -> list[int]:
    return sorted({epoch for parts in curves.values() for values in parts.values() for epoch, _ in values})


def _draw(subject: Subject, kind: str, parts: dict[str, list[tuple[int, float]]]) -> Picture:
    figure, axes = picture.new()
    for i, (part, values) in enumerate(parts.items()):
        style: dict[str, Any] = {"color": picture.COLOURS[i % 8], "linestyle": "-" if i < 8 else "--"}
        axes.plot(*zip(*values, strict=True), marker="o", markersize=3, label=part or None, **style)
    axes.xaxis.get_major_locator().set_params(integer=True)
    picture.name(axes, "epoch", said(kind))
    stem = "learnt-" + re.sub(r"[^a-z0-9]+", "-", kind.lower())
    picture.save(figure, subject.folder, stem)
    return Picture(stem, f"{said(kind)} over training; epoch 0 is where it started.")
