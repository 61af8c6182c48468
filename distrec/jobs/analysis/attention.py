"""How many directions each user's attention has, layer by layer and head by head, before and after a learnt matrix is added.

Shapes: B users, H heads, T positions (or frequencies).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from distrec.freq.spectrum import TOLERANCES, counted, ranks
from distrec.jobs.analysis.subject import Part, Subject
from distrec.jobs.pages import picture
from distrec.jobs.pages.learnt import short
from distrec.jobs.pages.page import Cell, Picture, Section, Table, Text
from distrec.models.attention import Seen, observe

_TITLE = "Ranks of attention"
_USERS = 256  # whose matrices are taken apart
_LINES = 8  # layers of a stack that are drawn
_FLOOR = 1e-9  # of singular values that are drawn
_COUNTS = (*(f"rank@{tolerance:g}" for tolerance in TOLERANCES), "effective_rank")


class Layer:
    """What was found in a layer, batch by batch; users' figures are B × H, singular values B × T, n of them real."""

    def __init__(self, seen: Seen):
        self.name = short(seen.name.removesuffix(".attention"))
        self.of_matrix = ranks(seen.matrix) if seen.matrix is not None else {}
        self._figures: dict[str, list[Tensor]] = {}
        self._values: dict[str, list[Tensor]] = {}

    def add(self, seen: Seen) -> None:
        n = seen.is_place.sum(1)
        self._keep("n", n[:, None].double().expand(seen.weights.shape[:2]))
        for when, matrices in (("", seen.weights), ("before.", seen.before)):
            if matrices is None:
                continue
            values = _singular(matrices, seen.is_place)
            for key, found in counted(values).items():
                self._keep(f"{when}{key}", found.double())
            is_real = torch.arange(values.shape[-1], device=n.device) < n[:, None]
            share = (values / values[..., :1].clamp(min=1e-300)).clamp(min=_FLOOR)
            decay = share.log().mean(1).masked_fill(~is_real, torch.nan)
            self._values.setdefault(f"{when}decay", []).append(decay.cpu())
        if seen.kept is not None:
            kept = (seen.kept * seen.is_place[:, None]).sum(-1) / n[:, None].clamp(min=1)
            self._keep("kept", kept.double())

    def by_head(self) -> dict[str, Float[Tensor, " H"]]:
        """Means over users."""
        return {key: torch.cat(parts).mean(0) for key, parts in self._figures.items()}

    def decay(self) -> dict[str, Float[Tensor, " T"]]:
        """Singular values as shares of the largest: geometric means over heads, and over the users who have so many."""
        longest = max(part.shape[1] for parts in self._values.values() for part in parts)
        whole = {
            key: torch.cat(
                [torch.nn.functional.pad(part, (0, longest - part.shape[1]), value=torch.nan) for part in parts]
            )
            for key, parts in self._values.items()
        }
        return {key: values.nanmean(0).exp() for key, values in whole.items()}

    def _keep(self, key: str, values: Tensor) -> None:
        self._figures.setdefault(key, []).append(values.cpu())


def attention(subject: Subject) -> Part:
    """Tables by layer and by head, and the decay of singular values; each rank with its tolerance."""
    layers, n_users = _layers(subject)
    if not layers:
        return Part(Section(_TITLE, (Text("This model has no attention that reads a history."),)), {})
    figures = {layer.name: _plain(layer) for layer in layers}
    has_matrix = any(layer.of_matrix for layer in layers)
    blocks = (
        *((_verdict(layers),) if has_matrix else ()),
        Text(
            f"Each of {n_users:,} users' matrices over the places that hold something (all frequencies where attention is "
            "between them), means over users. A rank counts the singular values above a tolerance times the largest; the "
            "effective rank, exp of the entropy of their shares, needs none."
        ),
        _table("Means over heads", layers, has_matrix, heads=False),
        _table("Head by head", layers, has_matrix, heads=True),
        _draw(subject, layers),
    )
    return Part(Section(_TITLE, blocks), {"users": n_users, "layers": figures, "mean": _mean(layers)})


def _layers(subject: Subject) -> tuple[list[Layer], int]:
    found: dict[str, Layer] = {}
    n_users = 0
    for batch in _spread(subject):
        for seen in observe(subject.model, batch):
            found.setdefault(seen.name, Layer(seen)).add(seen)
        n_users += len(batch.user)
    return list(found.values()), n_users


def _spread(subject: Subject) -> Iterator[Any]:
    """Batches of some _USERS users, of histories as short and as long as any."""
    every = max(1, subject.n_drawn // _USERS)
    return (batch for i, batch in enumerate(subject.batches()) if i % every == every // 2)


def _singular(matrices: Float[Tensor, "B H T T"], is_place: Tensor) -> Float[Tensor, "B H T"]:
    """Of the part over places: rows and columns of zeros add singular values of zero alone."""
    both = is_place[:, None, :, None] & is_place[:, None, None]
    return torch.linalg.svdvals((matrices * both).double())


def _plain(layer: Layer) -> dict[str, Any]:
    by_head = {key: values.tolist() for key, values in layer.by_head().items()}
    curves = {key: values.tolist() for key, values in layer.decay().items()}
    return {"by_head": by_head, "softplus(M)": layer.of_matrix, **curves}


def _mean(layers: list[Layer]) -> dict[str, float]:
    """Over heads, then over layers that have the figure."""
    found: dict[str, list[float]] = {}
    for layer in layers:
        for key, values in layer.by_head().items():
            found.setdefault(key, []).append(float(values.mean()))
    return {key: sum(values) / len(values) for key, values in found.items()}


def _table(title: str, layers: list[Layer], has_matrix: bool, heads: bool) -> Table:
    kinds = [*(f"rank, {tolerance:g}" for tolerance in TOLERANCES), "effective rank"]
    if has_matrix:
        kinds = [f"{kind}: {when}" for kind in kinds for when in ("before M", "after M", "softplus(M)")]
    head = ("layer", *(("head",) if heads else ()), "n", *kinds, *(("attention kept",) if has_matrix else ()))
    rows = tuple(row for layer in layers for row in _rows(layer, has_matrix, heads))
    caption = f"{title}. n: the largest possible rank."
    if has_matrix:
        caption += (
            " Before M: the softmax alone, of the same queries and keys. Attention kept: its share of each row's sum."
        )
    return Table(head, rows, caption, digits=2)


def _rows(layer: Layer, has_matrix: bool, heads: bool) -> Iterator[tuple[Cell, ...]]:
    figures = layer.by_head()
    for i in range(len(figures["n"]) if heads else 1):
        own: Mapping[str, float] = {
            key: float(values[i] if heads else values.mean()) for key, values in figures.items()
        }
        cells: list[Cell] = []
        for key in _COUNTS:
            cells += [own.get(f"before.{key}"), own[key], layer.of_matrix.get(key)] if has_matrix else [own[key]]
        yield (layer.name, *((i,) if heads else ()), own["n"], *cells, *((own.get("kept"),) if has_matrix else ()))


def _verdict(layers: list[Layer]) -> Text:
    """Of the layers that add a matrix, their means."""
    found = [layer.by_head() for layer in layers if layer.of_matrix]
    mean = {key: sum(float(each[key].mean()) for each in found) / len(found) for key in found[0]}
    told = ", ".join(
        f"from {mean[f'before.rank@{tolerance:g}']:.1f} to {mean[f'rank@{tolerance:g}']:.1f} at a tolerance of {tolerance:g}"
        for tolerance in TOLERANCES
    )
    kept = f"; {mean['kept']:.1%} of each row is still attention" if "kept" in mean else ""
    return Text(
        f"Adding M takes the rank of attention {told} (of {mean['n']:.0f}){kept}. The paper: from 18 to 41 of 41, without "
        "a tolerance.",
        "verdict",
    )


def _draw(subject: Subject, layers: list[Layer]) -> Picture:
    stacks: dict[str, list[Layer]] = {}
    for layer in layers:
        stacks.setdefault(layer.name.rpartition(" ")[0], []).append(layer)
    figure, axes = picture.new(width=1.6 + 4 * len(stacks), ncols=len(stacks), sharey=True, squeeze=False)
    for panel, (name, stack) in zip(axes[0], stacks.items(), strict=True):
        chosen = stack[:: -(-len(stack) // _LINES)]
        for colour, layer in zip(picture.COLOURS, chosen, strict=False):
            for key, style in (("decay", "-"), ("before.decay", "--")):
                if (values := layer.decay().get(key)) is not None:
                    label = f"{layer.name}{', before M' if key != 'decay' else ''}"
                    panel.plot(range(1, len(values) + 1), values, style, color=colour, label=label)
        for tolerance in TOLERANCES:
            panel.axhline(tolerance, color=picture.INK, linewidth=0.8, linestyle=":")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_yscale("log")
        panel.set_ylim(bottom=_FLOOR, top=2)
        panel.set_title(name if len(stacks) > 1 else "", fontsize=9)
        picture.name(panel, "number of the singular value", "share of the largest" if panel is axes[0][0] else "")
    picture.save(figure, subject.folder, "attention-decay")
    dashed = " Dashed: before M was added." if any(layer.of_matrix for layer in layers) else ""
    return Picture(
        "attention-decay",
        "Singular values of attention as shares of the largest, geometric means over heads and users; dotted: the tolerances "
        f"at which ranks are counted.{dashed}",
    )
