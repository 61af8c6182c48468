"""Users who have no sampled negatives lose the sampled figure, and nobody else does (case 16)."""

from dataclasses import replace

import numpy as np
import torch

from distrec import knobs
from distrec.data import audit
from distrec.engine.evaluation import metrics, outcome
from distrec.jobs.comparison import figures
from distrec.models.baselines.counting import Popularity
from distrec.runtime import Ranks


def measured(data):
    score = knobs.Score(bootstrap=0)
    return outcome.measure(Popularity(data), data, "test", score, Ranks(), torch.device("cpu"))


def without(data, users):
    negatives = np.array(data.negatives)
    negatives[users] = -1
    return replace(data, negatives=negatives)


def test_figures_are_means_over_the_users_who_have_negatives(small):
    whole, table = measured(small)
    report, ranks = measured(without(small, [3, 17, 80]))
    users, _ = small.targets("test")
    has = ~np.isin(users, [3, 17, 80])
    column = table["rank_sampled_1_20"].to_numpy()
    assert (ranks["rank_sampled_1_20"].to_numpy()[has] == column[has]).all()
    assert np.isnan(ranks["rank_sampled_1_20"].to_numpy()[~has]).all()
    assert report["full"] == whole["full"]
    assert report["sampled_1_20"] == metrics.summarise(column[has]) | {"users": int(has.sum())}
    assert f"({has.sum()} users who have negatives)" in outcome.lines(report)
    assert "users" not in whole["sampled_1_20"]


def test_without_any_negatives_there_is_no_sampled_figure(small):
    report, ranks = measured(without(small, slice(None)))
    assert not any("sampled" in name for name in [*report, *ranks.columns])


def test_a_comparison_leaves_such_users_out():
    ranks = figures._with_a_rank([np.array([1.0, np.nan, 3.0, 4.0]), np.array([2.0, np.nan, 1.0, 7.0])])
    assert [rank.tolist() for rank in ranks] == [[1, 3, 4], [2, 1, 7]]


def test_such_users_are_no_leak(small):
    """-1 is no item: with user 0's mark read as a number, user 1 of a full catalogue would be blamed for it."""
    assert not list(audit.positive_negatives(without(small, slice(None))))
