"""Whether near items of a history belong together, and who gains from a filter along time: local users or others.

A user's locality: how often others have two items that follow each other in this history, against what shuffled
histories give.  Source: METHODS of the house, the locality assumption of FreLLM4Rec.
"""

from typing import Any

import numpy as np
import polars as pl

from distrec.data.prepared import Prepared
from distrec.engine.evaluation import outcome
from distrec.engine.evaluation.metrics import per_user, standing
from distrec.freq.locality import LAGS, at_random, by_lag
from distrec.jobs.analysis.spectra import cooccurrences
from distrec.jobs.analysis.subject import Part, Subject
from distrec.jobs.pages import picture
from distrec.jobs.pages.page import Block, Picture, Section, Table, Text

_DECILES = 10
_METRIC = "ndcg@10"


def locality(subject: Subject) -> Part:
    data = subject.data
    means, chances, users = measured(data, subject.seed)
    draw_lags(subject, means, chances)
    rows = tuple((str(lag), means[lag], chances[lag], _ratio(means[lag], chances[lag])) for lag in means)
    text = (
        "Mean number of other users who have both items of a pair of training interactions, by how far apart the two stand in a "
        "history; and in shuffled histories of the users who have such pairs (long histories have more of the far ones). Where near pairs are no more frequent, a filter along time mixes strangers."
    )
    blocks: list[Block] = [
        Text(text),
        Table(("lag", "other users with both", "shuffled", "ratio"), rows, digits=2),
        Picture("locality", "Other users who have both items of a pair, by lag; dashed: shuffled histories"),
    ]
    figures: dict[str, Any] = {"by_lag": means, "shuffled": chances, "users": int(np.isfinite(users).sum())}
    if subject.against is not None:
        gain = by_decile(subject, users)
        figures["gain"] = gain
        blocks += gains(subject, gain)
    return Part(Section("Locality", tuple(blocks)), figures)


Means = dict[str, float | None]  # by lag; None where no history has such a pair


def measured(data: Prepared, seed: int) -> tuple[Means, Means, np.ndarray]:
    """(means; the same users' in shuffled histories; each user's locality, NaN where there are no two training items)."""
    weights = cooccurrences(data)
    item, start = data.training()
    found = {str(lag): by_lag(weights, item, start, lag) for lag in LAGS}
    near, chance = (np.divide(total, n, where=n > 0, out=np.full(len(n), np.nan)) for total, n in (found["1"], at_random(weights, item, start, seed)))  # fmt: skip
    means: Means = {lag: float(total.sum() / n.sum()) if n.any() else None for lag, (total, n) in found.items()}
    chances: Means = {lag: float(np.nan_to_num(chance) @ n / n.sum()) if n.any() else None for lag, (_, n) in found.items()}  # fmt: skip
    return means, chances, np.divide(near, chance, where=chance > 0, out=np.full(len(near), np.nan))


def by_decile(subject: Subject, users: np.ndarray) -> list[dict[str, Any]]:
    """The difference of NDCG@10 on test between this run and the other, by decile of the users' locality."""
    assert subject.against is not None
    own, other = (_gains(folder) for folder in (subject.out, subject.against))
    raw = pl.Series(subject.data.users.data.column("raw").to_pylist())
    local = pl.DataFrame({"user": raw, "locality": users})
    joined = own.join(other, on=["user", "target"], suffix="_other").join(local, on="user").drop_nulls().drop_nans()
    if not joined.height:
        raise ValueError(f"against={subject.against} has none of this run's users and targets")
    joined = joined.sort("locality", "user").with_columns(
        decile=pl.int_range(pl.len()) * _DECILES // pl.len(), gain=pl.col("value") - pl.col("value_other")
    )
    return [
        {
            "decile": number + 1,
            "locality": part["locality"].mean(),
            "gain": part["gain"].mean(),
            "error": _error(part["gain"].to_numpy()),
            "users": part.height,
        }
        for (number,), part in joined.group_by("decile", maintain_order=True)
    ]


def _error(values: np.ndarray) -> float | None:
    """The standard error of their mean; of one there is none."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def _gains(folder: Any) -> pl.DataFrame:
    table = outcome.ranks(folder)
    return table.select("user", "target", value=pl.Series(per_user(standing(table))[_METRIC]))


def gains(subject: Subject, found: list[dict[str, Any]]) -> list[Block]:
    figure, axis = picture.new()
    places = [row["decile"] for row in found]
    axis.errorbar(
        places, [row["gain"] for row in found], [1.96 * (row["error"] or 0) for row in found], fmt="o", capsize=2
    )
    axis.axhline(0, color=picture.INK, lw=1, ls="--")
    axis.set_xticks(places)
    picture.name(axis, "decile of the user's locality (10: most local)", "difference of NDCG@10, test")
    picture.save(figure, subject.folder, "gain_by_locality")
    head = ("decile", "locality", "difference of NDCG@10", "± 1.96 standard errors", "users")
    rows = tuple(
        (str(row["decile"]), row["locality"], row["gain"], row["error"] and 1.96 * row["error"], row["users"])
        for row in found
    )
    return [
        Text(f"Difference to {subject.against.resolve().name if subject.against else ''}, NDCG@10 on test, by how local a user's history is (1: as in shuffled histories)."),
        Table(head, rows),
        Picture("gain_by_locality", "Difference of NDCG@10 between the two runs by decile of the users' locality, with 95 % intervals"),
    ]  # fmt: skip


def _ratio(value: float | None, chance: float | None) -> float | None:
    return value / chance if value is not None and chance else None


def draw_lags(subject: Subject, means: Means, chances: Means) -> None:
    figure, axis = picture.new()
    known = [lag for lag in LAGS if means[str(lag)] is not None]
    axis.plot(known, [means[str(lag)] for lag in known], "o-", label="as they were")
    axis.plot(known, [chances[str(lag)] for lag in known], "--", color=picture.INK, lw=1, label="shuffled")
    picture.logarithmic(axis.xaxis, LAGS, "{:d}")
    axis.set_ylim(0)
    picture.name(axis, "lag (items apart)", "other users with both (mean)")
    picture.save(figure, subject.folder, "locality")
