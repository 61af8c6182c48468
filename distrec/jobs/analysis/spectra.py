"""Low-frequency energy, layer by layer, by the published measure and by ours.

published   the graph of the user's own history, the user's own counts in it, states as they are; a place's item is the next
graph       the same without the user's own counts, states of length 1; a place's item is its own
centred     that, without the states' mean over time
time        along time (DCT-II), states of length 1
mean        the share of the constant in that

Beside each stand white noise, and a state that does not change in time, by the same measure.
Source: FreLLM4Rec's code for `published`.  Deviation: its graph is built of training interactions alone, and the held-out
item that its last state stands for is left out, with that state; layers' states are taken as they are, where the published
code passes SASRec's through its last norm (`scored` stands after the norm).

Shapes: B users, T places, D channels, S stages (what the first layer reads, each layer, what scores take).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import torch
from scipy.sparse import csr_array
from torch import Tensor
from tqdm import tqdm

from distrec.data.batches import Batch
from distrec.data.prepared import Prepared
from distrec.freq import energy
from distrec.freq.graph import cooccurrence
from distrec.freq.locality import subgraphs
from distrec.jobs.analysis.subject import Part, Subject
from distrec.jobs.pages import picture
from distrec.jobs.pages.page import Picture, Section, Table, Text
from distrec.models.hooks import Recorder
from distrec.models.ranking import Reader

MEASURES = {
    "published": "graph of the user, own counts in, states as they are (the published measure)",
    "graph": "graph of the user, own counts out, states of length 1",
    "centred": "the same, without the states' mean over time",
    "time": "along time, states of length 1",
    "mean": "the constant in time alone",
}
LINES = ("noise", "constant")
LEAST = 8  # places of a history whose quarters are told
_BANDS = 10
_RESAMPLES = 2000


def spectra(subject: Subject) -> Part:
    """The low quarter's share of the energy at each stage; spectra.parquet holds every user's."""
    if not isinstance(subject.model, Reader):
        text = "This model does not read items place by place: there are no layers of states to measure."
        return Part(Section("Low-frequency energy by layer", (Text(text),)), {})
    weights = cooccurrences(subject.data)
    rows, by_band = gathered(subject, weights)
    table = pl.DataFrame(rows)
    if not table.height:
        text = f"No history has {LEAST} items: nothing to measure."
        return Part(Section("Low-frequency energy by layer", (Text(text),)), {})
    table.write_parquet(subject.folder / "spectra.parquet")
    stages = ["input", *(f"layer {i + 1}" for i in range(len(subject.model.layers))), "scored"]
    figures = summary(table, stages)
    draw_layers(subject, figures, stages)
    draw_bands(subject, by_band, stages)
    users = table.filter((pl.col("measure") == "time") & (pl.col("stage") == "input")).height
    text = (
        f"Share of the states' energy in the lowest quarter of frequencies; means over {users:,} users with at least {LEAST} "
        "items, read from training histories. What white noise has is no sign of smoothness, and what a state that never changes has is "
        "the most that a measure can see: where both are near, it measures the mean over time. Shuffled: the same histories in "
        "random order, read anew."
    )
    blocks = (
        Text(text),
        as_table(figures, stages),
        Picture("energy_by_layer", "Low-frequency energy by layer, measure by measure; dashed: white noise, dotted: a constant state, shade: 95 % over users"),
        Picture("energy_by_band", "Energy by band of frequency before the first layer, in the middle and at the end; dashed: white noise"),
    )  # fmt: skip
    return Part(Section("Low-frequency energy by layer", blocks), {"low": figures, "users": users})


def cooccurrences(data: Prepared) -> csr_array:
    """How many users have both of two items, of training interactions alone."""
    item, start = data.training()
    return cooccurrence(item, start, data.n_items, self_loops=False)


@torch.no_grad()
def gathered(subject: Subject, weights: csr_array) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(columns user, measure, stage, low; by measure the mean energy by band of each stage, over the users who have frequencies in it)."""
    columns: dict[str, list[np.ndarray]] = {"user": [], "measure": [], "stage": [], "low": []}
    total = {measure: np.zeros((len(subject.model.layers) + 2 + len(LINES), _BANDS)) for measure in ("graph", "time")}
    n = np.zeros(_BANDS)
    drawn = torch.Generator().manual_seed(subject.seed)
    for batch, order in tqdm(list(_orders(subject)), desc="spectra", unit="batch", leave=False, delay=2):
        for user, items, states in histories(subject.model, batch, order, drawn):
            found = measured(items, states, weights)
            for measure, power in found.items():
                low = power[..., 0] if measure == "mean" else energy.lowest(power)
                for stage, values in zip(_names(len(states)), low, strict=True):
                    if order is None or stage not in LINES:
                        columns["user"].append(user)
                        columns["measure"].append(np.full(len(user), measure))
                        columns["stage"].append(np.full(len(user), stage if order is None else f"shuffled {stage}"))
                        columns["low"].append(values.numpy())
            if order is None:
                shares = {measure: energy.bands(found[measure], _BANDS).share for measure in total}
                n += len(user) * shares["time"][0, 0].isfinite().numpy()  # the same of all who have as many items
                for measure, share in shares.items():
                    total[measure] += share.nan_to_num().sum(1).numpy()
    mean = {measure: np.divide(values, n, where=n > 0, out=np.full(np.shape(values), np.nan)) for measure, values in total.items()}  # fmt: skip
    return {name: np.concatenate(parts) if parts else np.empty(0) for name, parts in columns.items()}, mean


def _orders(subject: Subject) -> Iterator[tuple[Batch, torch.Generator | None]]:
    """Each batch as it is, then with its histories shuffled."""
    for number, batch in enumerate(subject.batches()):
        yield batch, None
        yield batch, torch.Generator().manual_seed(subject.seed * 1_000_003 + number)


def histories(
    model: Reader, batch: Batch, order: torch.Generator | None, drawn: torch.Generator
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """(users, items B × T, stages S + 2 × B × T × D) of the histories of each length; white noise and a constant last."""
    batch = batch if order is None else shuffle(batch, order)
    with Recorder(model.layers) as recorded:
        scored = model.read(batch)
    stages = [*recorded, scored]
    lengths = batch.is_item.sum(1)
    for length in lengths.unique().tolist():
        if length < LEAST:
            continue
        rows = lengths == length
        found = torch.stack([stage[rows, -length:].double().cpu() for stage in stages])
        noise = torch.randn(found.shape[1:], generator=drawn, dtype=torch.float64)
        constant = torch.ones_like(noise)
        yield (
            batch.user[rows].numpy(force=True),
            batch.items[rows, -length:].cpu(),
            torch.cat([found, noise[None], constant[None]]),
        )


def shuffle(batch: Batch, generator: torch.Generator) -> Batch:
    """The same histories, each in an order of its own."""
    key = torch.rand(batch.items.shape, generator=generator).to(batch.items.device)
    order = key.masked_fill(~batch.is_item, -1).argsort(1)  # padding stays on the left
    return Batch(batch.user, batch.items.gather(1, order), batch.is_item, batch.targets, batch.is_target)


def measured(items: Tensor, states: Tensor, weights: csr_array) -> dict[str, Tensor]:
    """Power by frequency, S × B × T (one place less for `published`), by each measure."""
    own = energy.eigenvectors(subgraphs(weights, items, is_own=False))
    following = energy.eigenvectors(subgraphs(weights, items[:, 1:], is_own=True))
    unit = states / states.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    along = energy.power(states, energy.cosines(states.shape[2]))
    return {
        "published": energy.power(states[:, :, :-1], following, unit=False),
        "graph": energy.power(states, own),
        "centred": energy.power(unit - unit.mean(2, keepdim=True), own, unit=False),
        "time": along,
        "mean": along[..., :1],
    }


def _names(n: int) -> list[str]:
    return ["input", *(f"layer {i}" for i in range(1, n - 3)), "scored", *LINES]


def summary(table: pl.DataFrame, stages: list[str]) -> dict[str, dict[str, Any]]:
    """By measure: the mean of each stage and line, and what is lost from the input to the last layer, with its interval."""
    found: dict[str, dict[str, Any]] = {}
    for measure in MEASURES:
        own = table.filter(pl.col("measure") == measure)
        wide = own.pivot(on="stage", index="user", values="low").sort("user")
        last = stages[-2]
        low, interval = lost(wide["input"].to_numpy(), wide[last].to_numpy())
        shade = {stage: _interval(wide[stage].to_numpy()) for stage in stages}
        found[measure] = {
            "stages": {name: float(wide[name].to_numpy().mean()) for name in (*stages, *LINES)}
            | ({"constant": None} if measure == "centred" else {}),  # nothing is left of it
            "stages_ci": shade,
            "lost": low,
            "lost_ci": interval,
            "shuffled": float(wide[f"shuffled {last}"].to_numpy().mean()),
        }
    return found


def lost(before: np.ndarray, after: np.ndarray) -> tuple[float, list[float]]:
    """(1 − mean after / mean before, its 95 % interval over users)."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(before), np.full(len(before), 1 / len(before)), _RESAMPLES)
    drawn = 1 - (counts @ after) / np.maximum(counts @ before, 1e-300)
    return float(1 - after.mean() / max(before.mean(), 1e-300)), np.quantile(drawn, [0.025, 0.975]).tolist()


def _interval(values: np.ndarray) -> list[float]:
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return [float(values.mean() - half), float(values.mean() + half)]


def as_table(figures: dict[str, dict[str, Any]], stages: list[str]) -> Table:
    rows = []
    for measure, title in MEASURES.items():
        own = figures[measure]
        means = own["stages"]
        low, high = own["lost_ci"]
        rows.append((title, means["noise"], means["constant"], means["input"], means[stages[-2]], means["scored"], own["shuffled"], f"{own['lost']:+.1%} ({low:+.1%} to {high:+.1%})"))  # fmt: skip
    head = ("measure", "white noise", "constant", "input", f"last layer ({stages[-2].removeprefix('layer ')})", "scored", "last, shuffled", "lost from input to last layer (95 %; negative: gained)")  # fmt: skip
    return Table(head, tuple(rows), "Low-frequency energy (lowest quarter of frequencies)", digits=3)


def draw_layers(subject: Subject, figures: dict[str, dict[str, Any]], stages: list[str]) -> None:
    shown = ("published", "graph", "time")
    figure, axes = picture.new(9.6, 3.3, ncols=3, sharey=True)
    places = np.arange(len(stages))
    for axis, measure in zip(axes, shown, strict=True):
        own = figures[measure]
        low, high = np.array([own["stages_ci"][stage] for stage in stages]).T
        axis.fill_between(places, low, high, alpha=0.25)
        axis.plot(places, [own["stages"][stage] for stage in stages], "o-", ms=4, label="this model")
        axis.axhline(own["stages"]["noise"], ls="--", color=picture.INK, lw=1, label="white noise")
        axis.axhline(own["stages"]["constant"], ls=":", color=picture.INK, lw=1.4, label="constant in time")
        ticks = places if len(stages) <= 6 else places[:: -(-len(stages) // 6)]
        axis.set_xticks(ticks, [stages[i].replace("layer ", "") for i in ticks])
        axis.set_title({"published": "published measure", "graph": "graph, own counts out", "time": "time"}[measure])
        axis.set_ylim(0, 1.03)
        picture.name(axis, "layer", "energy in the lowest quarter" if measure == shown[0] else "")
    for axis in axes[1:]:
        axis.get_legend().remove()
    picture.save(figure, subject.folder, "energy_by_layer")


def draw_bands(subject: Subject, by_band: dict[str, np.ndarray], stages: list[str]) -> None:
    figure, axes = picture.new(7.6, 3.3, ncols=2, sharey=True)
    chosen = sorted({0, (len(stages) - 1) // 2, len(stages) - 2})
    for axis, (measure, values) in zip(axes, by_band.items(), strict=True):
        middle = (np.arange(_BANDS) + 0.5) / _BANDS
        for stage in chosen:
            axis.plot(middle, values[stage], "o-", ms=3, label=stages[stage])
        axis.plot(middle, values[len(stages)], "--", color=picture.INK, lw=1, label="white noise")
        picture.logarithmic(axis.yaxis, (0.001, 0.01, 0.1, 1), "{:.1%}")
        axis.set_title({"graph": "graph, own counts out", "time": "time"}[measure])
        picture.name(axis, "frequency (rank, 0 to 1)", "share of the energy" if measure == "graph" else "")
    picture.save(figure, subject.folder, "energy_by_band")
