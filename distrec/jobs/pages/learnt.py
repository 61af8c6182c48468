"""What the model's parts learnt, evaluation by evaluation: σ of the filter, cutoffs, α and ranks of the added matrices."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distrec.jobs.pages import picture
from distrec.jobs.pages.page import Block, Picture, Table

_KIND = re.compile(
    r"(?:(?P<part>.+)\.)?(?P<kind>sigma|lm_alpha|rank@.+|effective_rank)|(?P<cutoff>cutoff)\.(?P<layer>\d+)"
)
_NAMED = 12  # lines of a picture that have names, at most
_SAID = {
    "sigma": "σ of the Gaussian filter (tokens)",
    "cutoff": "cutoff of the temporal filter (share of Nyquist)",
    "lm_alpha": "α of the added matrix",
    "effective_rank": "effective rank of softplus(M)",
}
Curves = dict[str, dict[str, list[tuple[int, float]]]]  # kind → part → (epoch, value)


def blocks(curves: Curves, folder: Path) -> tuple[Block, ...]:
    """First and last values (the first before the first step), and curves of each kind over epochs; nothing where nothing was told."""
    if not curves:
        return ()
    rows = tuple(
        (said(kind), part, values[0][1], values[-1][1], values[-1][1] - values[0][1])
        for kind, parts in curves.items()
        for part, values in parts.items()
    )
    first, last = (_epochs(curves)[i] for i in (0, -1))
    table = Table(("what", "part", f"epoch {first}", f"epoch {last}", "change"), rows)
    return (table, *(_draw(folder, kind, parts) for kind, parts in curves.items() if len(_epochs({kind: parts})) > 1))


def curves(journal: Iterable[Mapping[str, Any]]) -> Curves:
    """Of what the lines of metrics.jsonl tell under `learnt`."""
    found: Curves = {}
    for line in journal:
        for name, value in line.get("learnt", {}).items():
            kind, part = _split(name)
            found.setdefault(kind, {}).setdefault(part, []).append((int(line["epoch"]), float(value)))
    return found


def said(kind: str) -> str:
    of_rank = kind.removeprefix("rank@")
    return _SAID.get(kind, kind if of_rank == kind else f"rank of softplus(M), tolerance {of_rank}")


def short(name: str) -> str:
    """A layer as readers see it: crfa.real.layers.0.attention.rpml is `crfa.real 1`, blocks.1 `layer 2`."""
    found = re.sub(r"\.?(layers|blocks)\.(\d+)(\..+)?$", lambda match: f" {int(match[2]) + 1}", name)
    return f"layer{found}" if found.startswith(" ") else found


def _split(name: str) -> tuple[str, str]:
    """(kind, part) of a fact's name."""
    match = _KIND.fullmatch(name)
    if match is None:
        return name, ""
    if match["cutoff"]:
        return "cutoff", f"layer {int(match['layer']) + 1}"
    return match["kind"], short(match["part"] or "")


def _epochs(curves: Curves) -> list[int]:
    return sorted({epoch for parts in curves.values() for values in parts.values() for epoch, _ in values})


def _draw(folder: Path, kind: str, parts: dict[str, list[tuple[int, float]]]) -> Picture:
    figure, axes = picture.new()
    every = -(-len(parts) // _NAMED)
    for i, (part, values) in enumerate(parts.items()):
        style: dict[str, Any] = {"color": picture.COLOURS[i % 8], "linestyle": "-" if i < 8 else "--"}
        label = part if part and i % every == 0 else None
        axes.plot(*zip(*values, strict=True), marker="o", markersize=3, label=label, **style)
    axes.xaxis.get_major_locator().set_params(integer=True)
    picture.name(axes, "epoch", said(kind))
    stem = "learnt-" + re.sub(r"[^a-z0-9]+", "-", kind.lower())
    picture.save(figure, folder, stem)
    return Picture(stem, f"{said(kind)} over training; epoch 0 is where it started.")
