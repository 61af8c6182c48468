"""What the order of histories is worth to a model: the validation split ranked with histories shuffled.

Two shuffles: all of a history, and only interactions of the same time, whose order a file may have made up.
"""

from dataclasses import replace

import numpy as np

from distrec.data.prepared import Prepared
from distrec.engine.evaluation import scoring
from distrec.engine.evaluation.metrics import per_user
from distrec.freq.locality import shuffled, shuffled_ties
from distrec.jobs.analysis.subject import Part, Subject
from distrec.jobs.pages.page import Section, Table, Text
from distrec.runtime import Ranks

TITLE = "Controls: histories in another order"
_METRICS = ("hr@10", "ndcg@10")
_DRAWS = 3


def controls(subject: Subject) -> Part:
    data = subject.drawn
    before = np.arange(int(data.start[-1])) < np.repeat(data.train_end, np.diff(data.start))
    has_times = bool(np.ptp(data.time[before]))
    kinds = {**({"ties shuffled": True} if has_times else {}), "shuffled": False}
    orders = {"as they were": [np.arange(len(before))]} | {
        name: [_histories(data, before, np.random.default_rng([subject.seed, i]), is_tied) for i in range(_DRAWS)]
        for name, is_tied in kinds.items()
    }
    found = {
        name: [_accuracy(subject, replace(data, item=data.item[order])) for order in each]
        for name, each in orders.items()
    }
    moved = _tied(data, before) if has_times else None
    rows = tuple(
        (name, *(float(np.mean([draw[i] for draw in draws])) for i in range(len(_METRICS))), _spread(draws))
        for name, draws in found.items()
    )
    ties = "The data have no times." if moved is None else f"{moved:.1%} of training interactions have the time of the one before them in their history, so that their order says nothing sure."  # fmt: skip
    text = (
        f"{ties} {subject.n_drawn:,} users, means of {_DRAWS} shuffles; a model that is as good on shuffled histories does not "
        "use their order, and a filter along time cannot help it."
    )
    head = ("histories", "HR@10, validation", "NDCG@10, validation", "std of NDCG@10 over shuffles")
    figures = {name: {metric: [draw[i] for draw in draws] for i, metric in enumerate(_METRICS)} for name, draws in found.items()}  # fmt: skip
    return Part(Section(TITLE, (Text(text), Table(head, rows))), {**figures, "tied": moved})


def _histories(data: Prepared, before: np.ndarray, rng: np.random.Generator, is_tied: bool) -> np.ndarray:
    """Training interactions in random order within their user, or within those of the same time; held-out ones where they are."""
    _, start = data.training()
    places = np.flatnonzero(before)
    order = np.arange(len(before))
    order[before] = places[shuffled_ties(start, data.time[places], rng) if is_tied else shuffled(start, rng)]
    return order


def _tied(data: Prepared, before: np.ndarray) -> float:
    """How many training interactions, of those with one before them in their history, have its time."""
    follows = before.copy()
    follows[data.start[:-1][data.start[:-1] < len(before)]] = False
    places = np.flatnonzero(follows)
    return float((data.time[places] == data.time[places - 1]).mean()) if len(places) else 0.0


def _accuracy(subject: Subject, data: Prepared) -> tuple[float, ...]:
    ranking = scoring.rank_split(subject.model, data, "valid", subject.config.score, Ranks(), subject.device)
    found = per_user(ranking.standing)
    return tuple(float(found[metric].mean()) for metric in _METRICS)


def _spread(draws: list[tuple[float, ...]]) -> float | None:
    return float(np.std([draw[1] for draw in draws], ddof=1)) if len(draws) > 1 else None
