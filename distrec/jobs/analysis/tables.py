"""Energy of items' vectors over the graph of all items, at any size (freq/measure.py)."""

from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from distrec import knobs
from distrec.data.prepared import Prepared
from distrec.freq.graph import cooccurrence, normalise
from distrec.freq.measure import Frequencies, Measure
from distrec.jobs.analysis.subject import Part, Subject
from distrec.jobs.pages import picture
from distrec.jobs.pages.page import Picture, Section, Table, Text
from distrec.models.frellm import Frellm
from distrec.models.ranking import TableModel
from distrec.models.tone import Tone

TITLE = "Energy of item vectors over the graph of items"
SHARES = np.array([0.01, 0.05, 0.1, 0.25, 0.5, 0.75])


def item_spectra(subject: Subject) -> Part:
    """How much of the items' vectors lies at low frequencies of the graph that G-LPF filters on by default."""
    own = subject.config.model
    is_filtered = isinstance(own, knobs.Frellm) and own.graph.glpf_alpha > 0
    signals = dict(vectors(subject.model, ", filtered on the graph" if is_filtered else ""))
    if not signals:
        return Part(Section(TITLE, (Text("This model has no vectors of items."),)), {})
    graph = Frequencies(graph_of(subject.data), subject.steps, subject.seed)
    level = graph.noise
    edges = level.quantiles(SHARES)
    found = {name: graph.measure(x.float().cpu()) for name, x in signals.items()}
    constant = graph.measure(torch.ones(subject.data.n_items, 1))
    lines = {**found, "the same vector for all": constant, "white noise": level}
    figures = {name: dict(zip(map(str, SHARES), each.below(edges).tolist(), strict=True)) for name, each in lines.items()}  # fmt: skip
    draw(subject, lines, level)
    how = (
        "exact"
        if level.is_exact
        else f"by Lanczos, {subject.steps} steps: shares are known to about {1.5 / subject.steps:.2f}"
    )
    text = (
        f"Graph: users who have both of two items, training interactions, {graph.A.nnz:,} edges; {how}. Frequencies are ranked so that "
        "white noise has as much below each rank as there are frequencies."
    )
    head = ("vectors", *(f"lowest {share:.0%}" for share in SHARES))
    table = Table(head, tuple((name, *each.values()) for name, each in figures.items()), "Share of the energy", digits=3)  # fmt: skip
    seen = Picture(
        "item_energy",
        "Energy of item vectors below each frequency of the item graph; the diagonal is white noise's share",
    )
    return Part(Section(TITLE, (Text(text), table, seen)), {"below": figures, "edges": graph.A.nnz, "is_exact": level.is_exact})  # fmt: skip


def graph_of(data: Prepared) -> csr_array:
    """The normalised adjacency of all items: RᵀR of training interactions, the default of model.graph."""
    item, start = data.training()
    return normalise(cooccurrence(item, start, data.n_items), in_place=True)


@torch.no_grad()
def vectors(model: object, filtered: str) -> Iterator[tuple[str, Tensor]]:
    """What a model knows of every item, by name; `filtered`: what is added where they went through the graph filter."""
    if isinstance(model, Frellm):
        yield f"collaborative vectors{filtered}", model.table.collaborative
        yield f"text vectors{filtered}", model.table.text
    if isinstance(model, TableModel):
        yield "item table", model.item_vectors(slice(0, model.n_items))
    if isinstance(model, Tone):
        yield "codes' embeddings, mean", model.shared(model.token_of).mean(1)


def draw(subject: Subject, lines: dict[str, Measure], level: Measure) -> None:
    figure, axis = picture.new()
    shares = np.linspace(0.005, 0.995, 199)
    edges = level.quantiles(shares)
    for name, each in lines.items():
        is_noise = name == "white noise"
        style = {"ls": "--", "color": picture.INK, "lw": 1} if is_noise else {}
        axis.plot(shares, shares if is_noise else each.below(edges), label=name, **style)
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.02)
    picture.name(axis, "frequency of the item graph (rank, 0 to 1)", "share of the energy below")
    picture.save(figure, subject.folder, "item_energy")
