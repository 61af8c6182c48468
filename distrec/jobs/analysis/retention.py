"""Accuracy when the item table keeps a share of the graph's frequencies: how much of what a model knows is smooth.

Kept are the lowest frequencies, the highest, and, as a control, the lowest of the same graph with its items shuffled: a
space of the same size that knows nothing of them.  Users' states stay as they are; the validation split is ranked.

Shapes: I items, D channels, U users.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array
from torch import Tensor
from tqdm import tqdm

from distrec.data import batches
from distrec.data.batches import Batch
from distrec.engine import scoring
from distrec.engine.metrics import per_user
from distrec.freq.graph import chebyshev, chebyshev_coefficients
from distrec.freq.measure import DENSE, dense, noise
from distrec.jobs.analysis.subject import Part, Subject
from distrec.jobs.analysis.tables import graph_of
from distrec.jobs.pages import picture
from distrec.jobs.pages.page import Picture, Section, Table, Text
from distrec.models.ranking import TableModel
from distrec.runtime import Ranks

TITLE = "Accuracy by the share of graph frequencies kept"
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
_ORDER = 200  # of the polynomial that cuts off, on large graphs
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
    A = graph_of(data)
    other = np.random.default_rng(subject.seed).permutation(data.n_items)
    found: dict[str, list[float]] = {"lowest": [], "highest": [], "shuffled": []}
    bar = tqdm(total=3 * len(SHARES), desc="retention", unit="ranking", leave=False, delay=2)
    low_pass, strangers = LowPass(A), torch.from_numpy(other)
    for share in SHARES:
        kept = {
            "lowest": low_pass(table, share),
            "highest": table - low_pass(table, 1 - share),
            "shuffled": torch.empty_like(table).index_copy_(0, strangers, low_pass(table[strangers], share)),
        }
        for name, rows in kept.items():
            found[name].append(ndcg(subject, Fixed(states, rows, model.max_len)))
            bar.update()
    bar.close()
    draw(subject, found)
    is_exact = low_pass.is_exact
    text = (
        "NDCG@10 of the validation split, history masked as in the run, after the item table was projected on a share of the item "
        "graph's frequencies. Without training anew: what a model could do that was trained on such a table is another question. "
        + ("The projection is exact." if is_exact else f"The projection is a polynomial of degree {_ORDER}: its edge is soft.")
    )  # fmt: skip
    rows = tuple((f"{share:.0%}", *(found[name][i] for name in found)) for i, share in enumerate(SHARES))
    head = ("share kept", "lowest frequencies", "highest", "lowest, items shuffled (control)")
    seen = Picture("retention", "Accuracy against the share of graph frequencies kept: lowest, highest, and a space of the same size that knows nothing of the items")  # fmt: skip
    return Part(Section(TITLE, (Text(text), Table(head, rows), seen)), {"share": list(SHARES), **found, "is_exact": is_exact})  # fmt: skip


class LowPass:
    """Vectors on the lowest share of a graph's frequencies."""

    def __init__(self, A: csr_array):
        self.A, self.is_exact = A, len(A.indptr) - 1 <= DENSE
        self._vectors = torch.from_numpy(dense(A)[1]) if self.is_exact else None
        self._level = None if self.is_exact else noise(A)

    def __call__(self, x: Float[Tensor, "I D"], share: float) -> Float[Tensor, "I D"]:
        if share >= 1:
            return x
        if share <= 0:
            return torch.zeros_like(x)
        if self._vectors is not None:
            kept = self._vectors[:, : max(1, round(share * len(x)))]
            return (kept @ (kept.T @ x.double())).float()
        assert self._level is not None
        edge = float(self._level.quantiles(np.array([share]))[0])
        jackson = damped(chebyshev_coefficients(lambda f: (f <= edge).astype(float), _ORDER))
        return chebyshev(self.A, x, jackson)


def damped(coefficients: list[float]) -> list[float]:
    """Jackson's factors: the polynomial of a step does not swing beside it."""
    n = len(coefficients)
    k = np.arange(n)
    angle = np.pi / (n + 1)
    factor = ((n - k + 1) * np.cos(k * angle) + np.sin(k * angle) / np.tan(angle)) / (n + 1)
    return (np.array(coefficients) * factor).tolist()


@torch.no_grad()
def states_of(subject: Subject) -> Float[Tensor, "U D"]:
    """Every user's state before the validation target; zeros for who has none."""
    samples = batches.evaluation(subject.data, "valid", subject.model.max_len)
    found = None
    order = np.argsort(samples.lengths(), kind="stable")
    for low in range(0, len(order), scoring.BLOCK):
        batch = batches.collate(subject.data, samples, order[low : low + scoring.BLOCK]).to(subject.device)
        states = subject.model.user_states(batch).cpu()
        if found is None:
            found = torch.zeros(subject.data.n_users, states.shape[1])
        found[batch.user.cpu()] = states
    assert found is not None
    return found


def ndcg(subject: Subject, model: TableModel) -> float:
    ranking = scoring.rank_split(model, subject.data, "valid", subject.config.score, Ranks(), torch.device("cpu"))
    return float(per_user(ranking.rank)[_METRIC].mean())


def draw(subject: Subject, found: dict[str, list[float]]) -> None:
    figure, axis = picture.new()
    names = {"lowest": "lowest frequencies kept", "highest": "highest kept", "shuffled": "lowest, items shuffled (control)"}  # fmt: skip
    for (name, title), style in zip(names.items(), ("o-", "s-", "^--"), strict=True):
        axis.plot(SHARES, found[name], style, ms=4, label=title)
    picture.logarithmic(axis.xaxis, (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1))
    axis.set_ylim(0)
    picture.name(axis, "share of the item graph's frequencies kept (log)", "NDCG@10, validation")
    picture.save(figure, subject.folder, "retention")
