"""Users who have no sampled negatives lose the sampled figure, and nobody else does (case 16)."""

from dataclasses import replace

import numpy as np
import torch

from distrec import knobs
from distrec.data import audit
from distrec.engine.evaluation import metrics, outcome
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
    for name in ("rank", "better", "ties"):
        column = ranks[f"{name}_sampled_1_20"]
        assert (column.is_null().to_numpy() == ~has).all()
        assert (column.drop_nulls().to_numpy() == table[f"{name}_sampled_1_20"].to_numpy()[has]).all()
    assert report["full"] == whole["full"]
    standing = metrics.standing(table, "sampled_1_20")
    assert report["sampled_1_20"] == metrics.summarise(standing.of(has)) | {"users": int(has.sum())}
    assert whole["sampled_1_20"]["users"] == len(has)
    assert f"sampled_1_20 is of the {has.sum()} users who have negatives, of {len(has)}." in outcome.lines(report)
    assert "who have negatives" not in outcome.lines(whole)
    assert report["protocol"]["negatives"].startswith("20 distinct ones for each user")


def test_without_any_negatives_there_is_no_sampled_figure(small):
    report, ranks = measured(without(small, slice(None)))
    assert not any("sampled" in name for name in [*report, *ranks.columns])
    assert measured(replace(small, negatives=None))[0]["protocol"]["negatives"] == "none"


def test_such_users_are_no_leak(small):
    """-1 is no item: with user 0's mark read as a number, user 1 of a full catalogue would be blamed for it."""
    assert not list(audit.positive_negatives(without(small, slice(None))))


def test_repeats_do_not_change_the_sampled_figures(small):
    """Negatives are items that a user never had: whether the history is kept is nothing to them."""
    item = small.item.copy()
    item[small.start[:-1:3]] = item[small.valid_end[::3]]
    data = replace(small, item=item)
    reports = [outcome.measure(Popularity(data), data, "test", knobs.Score(bootstrap=0, mask_history=mask), Ranks(), torch.device("cpu"))[0] for mask in (True, False)]  # fmt: skip
    assert reports[0]["repeats"] == reports[1]["repeats"] > 0
    assert reports[0]["sampled_1_20"] == reports[1]["sampled_1_20"]
    assert reports[0]["full"] != reports[1]["full"]
