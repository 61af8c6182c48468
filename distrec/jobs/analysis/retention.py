"""Accuracy when the item table keeps a share of the graph's frequencies: how much of what a model knows is smooth.

Kept are the lowest frequencies, the highest, and, as a control, the lowest of the same graph with its items shuffled: a
space of the same size that knows nothing of them.  Users' states stay as they are; the validation split is ranked.

Shapes: I items, D channels, U users.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from distrec.data.batches import Batch
from distrec.engine.evaluation import scoring
from distrec.engine.evaluation.metrics import per_user
from distrec.freq.measure import ORDER, Frequencies
from distrec.jobs.analysis.subject import Part, Subject
from distrec.jobs.analysis.tables import graph_of
from distrec.jobs.pages import picture
from distrec.jobs.pages.page import Picture, Section, Table, Text
from distrec.models.ranking import TableModel
from distrec.runtime import Ranks

TITLE = "Accuracy by the share of graph frequencies kept"
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
_METRIC = "ndcg@10"


class Fixed(TableModel):
    """States that were worked out before, and a table of one's choice."""

    def __init__(self, states: Float[Tensor, "U D"], table: Float[Tensor, "I D"], max_len: Any):
        super().__init__()
        self.states, self.table, self.max_len, self.n_items = states, table, max_len, len(table)

    def user_states(self, batch: Batch) -> Float[Tensor, "B D"]:
        return self.states[batch.user]

    def item_vectors(self, items: slice | Tensor) -> Float[Tensor, "n D"]:
        return self.table[items]


def retention(subject: Subject) -> Part:
    model, data = subject.model, subject.data
    if not isinstance(model, TableModel):
        return Part(Section(TITLE, (Text("This model does not score by a table of items: there is nothing to filter."),)), {})  # fmt: skip
    states, table = states_of(subject), model.item_vectors(slice(0, data.n_items)).cpu()
    graph = Frequencies(graph_of(data), subject.steps, subject.seed)
    other = torch.from_numpy(np.random.default_rng(subject.seed).permutation(data.n_items))
    kept = {
        "lowest": graph.lowest(table, SHARES),
        "highest": (table - low for low in graph.lowest(table, [1 - share for share in SHARES])),
        "shuffled": (torch.empty_like(low).index_copy_(0, other, low) for low in graph.lowest(table[other], SHARES)),
    }
    with tqdm(total=len(kept) * len(SHARES), desc="retention", unit="ranking", leave=False, delay=2) as bar:
        found = {name: [ndcg(subject, Fixed(states, rows, model.max_len), bar) for rows in tables] for name, tables in kept.items()}  # fmt: skip
    draw(subject, found)
    text = (
        f"NDCG@10 of the validation split, {subject.n_drawn:,} users, history masked as in the run, after the item table was projected on a "
        "share of the item graph's frequencies. Without training anew: what a model could do that was trained on such a table is another question. "
        + ("The projection is exact; a frequency that many vectors share is kept with all of them or not at all." if graph.is_exact else f"The projection is a polynomial of degree {ORDER}: its edge is soft.")
    )  # fmt: skip
    noise = [float(graph.noise.energy @ graph.response(share) ** 2) for share in SHARES]
    rows = tuple(
        (f"{share:.0%}", *(found[name][i] for name in found), f"{noise[i]:.1%}") for i, share in enumerate(SHARES)
    )
    head = ("share kept", "lowest frequencies", "highest", "lowest, items shuffled (control)", "white noise kept by the lowest")  # fmt: skip
    seen = Picture("retention", "Accuracy against the share of graph frequencies kept: lowest, highest, and a space of the same size that knows nothing of the items")  # fmt: skip
    return Part(Section(TITLE, (Text(text), Table(head, rows), seen)), {"share": list(SHARES), **found, "noise": noise, "is_exact": graph.is_exact})  # fmt: skip


@torch.no_grad()
def states_of(subject: Subject) -> Float[Tensor, "U D"]:
    """States before the validation target; zeros for who was not drawn."""
    found = None
    for batch in subject.batches():
        states = subject.model.user_states(batch).cpu()
        if found is None:
            found = torch.zeros(subject.data.n_users, states.shape[1])
        found[batch.user.cpu()] = states
    assert found is not None
    return found


def ndcg(subject: Subject, model: TableModel, bar: Any) -> float:
    ranking = scoring.rank_split(model, subject.drawn, "valid", subject.config.score, Ranks(), torch.device("cpu"))
    bar.update()
    return float(per_user(ranking.standing)[_METRIC].mean())


def draw(subject: Subject, found: dict[str, list[float]]) -> None:
    figure, axis = picture.new()
    names = {"lowest": "lowest frequencies kept", "highest": "highest kept", "shuffled": "lowest, items shuffled (control)"}  # fmt: skip
    for (name, title), style in zip(names.items(), ("o-", "s-", "^--"), strict=True):
        axis.plot(SHARES, found[name], style, ms=4, label=title)
    picture.logarithmic(axis.xaxis, (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1))
    axis.set_ylim(0)
    picture.name(axis, "share of the item graph's frequencies kept (log)", "NDCG@10, validation")
    picture.save(figure, subject.folder, "retention")
