"""The counting yardsticks, against plain Python and against an independent program's figures for Beauty."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from distrec import knobs
from distrec.data import batches
from distrec.engine.evaluation import metrics, scoring
from distrec.models.build import build
from distrec.runtime import Ranks


def plain_train(data):
    return [data.item[data.start[u] : data.train_end[u]].tolist() for u in range(data.n_users)]


def plain_history(data, u):
    return data.item[data.start[u] : data.valid_end[u]].tolist()


def popularity(train, history, n_items):
    return [float(sum(sequence.count(i) for sequence in train)) for i in range(n_items)]


def item_knn(train, history, n_items):
    users = [{u for u, sequence in enumerate(train) if i in sequence} for i in range(n_items)]

    def cosine(i, j):
        return (
            len(users[i] & users[j]) / math.sqrt(len(users[i]) * len(users[j]))
            if i != j and users[i] and users[j]
            else 0.0
        )

    return [sum(cosine(h, i) for h in history) for i in range(n_items)]


def markov(train, history, n_items):
    counts = np.zeros((n_items, n_items))
    for sequence in train:
        for a, b in pairwise(sequence):
            counts[a, b] += 1
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return sum(0.7**age * shares[item] for age, item in enumerate(reversed(history))).tolist()


@pytest.mark.parametrize(
    ("config", "plain"), [(knobs.Popularity(), popularity), (knobs.ItemKnn(), item_knn), (knobs.Markov(), markov)]
)
def test_scores_equal_plain_python(small, config, plain):
    model = build(config, small, 0)
    samples = batches.evaluation(small, "test", model.max_len)
    scorer = model.scorer(batches.collate(small, samples, np.arange(6)))
    train = plain_train(small)
    expected = [plain(train, plain_history(small, samples.user[row]), small.n_items) for row in range(6)]
    np.testing.assert_allclose(scorer(slice(None)), expected, rtol=1e-6, atol=1e-12)
    some = torch.tensor([5, 3, 3])
    np.testing.assert_allclose(scorer(some), np.array(expected)[:, some], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("config", "hr", "ndcg"),
    [(knobs.Popularity(), 0.0120, 0.0056), (knobs.ItemKnn(), 0.0569, 0.0326), (knobs.Markov(), 0.0728, 0.0454)],
    ids=["popularity", "item_knn", "markov"],
)
def test_beauty_agrees_with_an_independent_program(beauty, config, hr, ndcg):
    """That program counts a target as inside K when its expected rank is below K + 1."""
    model = build(config, beauty, 0)
    ranking = scoring.rank_split(model, beauty, "test", knobs.Score(), Ranks(), torch.device("cpu"))
    inside = ranking.rank < 11
    assert inside.mean() == pytest.approx(hr, abs=2e-4)
    assert (inside / np.log2(1 + ranking.rank)).mean() == pytest.approx(ndcg, abs=2e-4)
    assert metrics.summarise(ranking.standing)["hr@10"] < inside.mean()  # ties count in part


def test_nothing_held_out_is_counted(small):
    """Other validation and test items, same training: the same scores for the same history."""
    from dataclasses import replace

    item = small.item.copy()
    held_out = ~small.is_train()
    item[held_out] = np.random.default_rng(0).integers(0, small.n_items, held_out.sum())
    changed = replace(small, item=item)
    samples = batches.evaluation(small, "valid", 1000)
    batch = batches.collate(small, samples, np.arange(len(samples)))
    for config in (knobs.Popularity(), knobs.ItemKnn(), knobs.Markov()):
        one, two = (build(config, data, 0).scorer(batch)(slice(None)) for data in (small, changed))
        assert torch.equal(one, two)


@pytest.mark.parametrize("config", [knobs.Popularity(), knobs.ItemKnn(), knobs.Markov()])
def test_scores_are_compared_as_float32(small, config):
    """Equal sums that are added in another order differ in the last bits of float64; they are ties."""
    model = build(config, small, 0)
    samples = batches.evaluation(small, "test", model.max_len)
    scores = model.scorer(batches.collate(small, samples, np.arange(6)))
    assert scores(slice(None)).dtype == scores(torch.tensor([0, 2])).dtype == torch.float32
