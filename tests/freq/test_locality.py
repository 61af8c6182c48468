"""Locality against loops over users and pairs."""

import itertools

import numpy as np
import pytest
import torch

from distrec.freq.graph import cooccurrence
from distrec.freq.locality import at_random, by_lag, shuffled, shuffled_ties, subgraphs


@pytest.fixture(scope="module")
def made():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 12, 40)
    item = rng.integers(0, 15, lengths.sum())
    start = np.r_[0, lengths.cumsum()]
    return item, start, cooccurrence(item, start, 15, self_loops=False)


def others(item, start, user, i, j):
    return sum({i, j} <= set(item[low:high].tolist()) for u, (low, high) in enumerate(itertools.pairwise(start)) if u != user)  # fmt: skip


@pytest.mark.parametrize("lag", [1, 3])
def test_by_lag_is_a_count_over_other_users(made, lag):
    item, start, W = made
    total, n = by_lag(W, item, start, lag)
    for user, (low, high) in enumerate(itertools.pairwise(start)):
        own = item[low:high]
        pairs = [(i, j) for i, j in zip(own, own[lag:], strict=False) if i != j]
        assert n[user] == len(pairs)
        assert total[user] == sum(others(item, start, user, i, j) for i, j in pairs)


def test_graphs_of_histories_leave_their_users_own_counts_out(made):
    item, start, W = made
    user = int(np.argmax(np.diff(start)))
    own = torch.from_numpy(item[start[user] : start[user + 1]])[None]
    without, whole = subgraphs(W, own, False)[0], subgraphs(W, own, True)[0]
    for (s, i), (t, j) in itertools.product(enumerate(own[0].tolist()), repeat=2):
        assert float(without[s, t]) == (others(item, start, user, i, j) if i != j else 0)
        assert float(whole[s, t]) == float(without[s, t]) + (i != j)


def test_what_no_user_of_the_graph_has_together_has_no_edge_in_a_history_either():
    item, start = np.array([0, 1, 0, 1, 2, 3]), np.array([0, 2, 5, 6])
    W = cooccurrence(item, start, 4, self_loops=False)
    found = subgraphs(W, torch.tensor([[0, 1, 3]]), is_own=False)[0]  # nobody has 3 with another item
    assert found.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_shuffles_keep_histories_and_ties_keep_time(made):
    item, start, _W = made
    time = np.random.default_rng(1).integers(0, 4, len(item))
    time = np.concatenate([np.sort(time[low:high]) for low, high in itertools.pairwise(start)])
    free, tied = shuffled(start, np.random.default_rng(2)), shuffled_ties(start, time, np.random.default_rng(2))
    assert (free != np.arange(len(item))).any()
    assert (tied != np.arange(len(item))).any()
    assert (time[tied] == time).all()
    for low, high in itertools.pairwise(start):
        for order in (free, tied):
            assert sorted(order[low:high]) == list(range(low, high))


def test_chance_is_the_mean_over_all_pairs(made):
    item, start, W = made
    total, n = at_random(W, item, start, 0, 400)
    user = int(np.argmax(np.diff(start)))
    own = item[start[user] : start[user + 1]]
    pairs = [others(item, start, user, i, j) for i, j in itertools.permutations(own, 2) if i != j]
    assert total[user] / n[user] == pytest.approx(np.mean(pairs), rel=0.05)


def test_methods_1_3_local_catalogues_are_told_from_shuffled_ones():
    """Histories that walk along a ring of items: near places share users, far ones do not."""
    rng = np.random.default_rng(0)
    steps = rng.integers(1, 3, (300, 20)).cumsum(1) + rng.integers(0, 200, (300, 1))
    item, start = (steps % 200).ravel(), np.arange(301) * 20
    W = cooccurrence(item, start, 200, self_loops=False)
    means = [by_lag(W, item, start, lag)[0].sum() / by_lag(W, item, start, lag)[1].sum() for lag in (1, 4, 12)]
    chance = at_random(W, item, start, 0)
    assert means[0] > means[1] > means[2]
    assert means[0] > 1.2 * chance[0].sum() / chance[1].sum()
