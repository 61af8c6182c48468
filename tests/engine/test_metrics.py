import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from distrec.engine.evaluation import metrics


def test_ndcg_and_hits_equal_scikit_learn_s():
    rng = np.random.default_rng(0)
    rank = rng.integers(1, 31, 200).astype(float)
    relevance = np.zeros((200, 30))
    relevance[np.arange(200), rank.astype(int) - 1] = 1
    scores = np.tile(np.arange(30, 0, -1), (200, 1))
    ours = metrics.summarise(rank)
    for k in metrics.CUTOFFS:
        assert ours[f"ndcg@{k}"] == pytest.approx(ndcg_score(relevance, scores, k=k))
        assert ours[f"hr@{k}"] == pytest.approx((rank <= k).mean())
    assert ours["mrr"] == pytest.approx((1 / rank).mean())


def test_infinite_ranks_count_nothing():
    found = metrics.summarise(np.array([np.inf, 1.0]))
    assert found["hr@10"] == 0.5
    assert found["mrr"] == 0.5


def test_the_bootstrap_over_ranks_is_the_bootstrap_over_users():
    rng = np.random.default_rng(0)
    rank = rng.geometric(0.1, 400).astype(float)
    ours = metrics.summarise(rank, 4000)
    hits = rank <= 10
    plain = np.quantile([rng.choice(hits, 400).mean() for _ in range(4000)], [0.025, 0.975])
    np.testing.assert_allclose(ours["hr@10_ci"], plain, atol=0.006)
    assert ours["hr@10_ci"][0] < ours["hr@10"] < ours["hr@10_ci"][1]


def test_figures_do_not_depend_on_the_order_of_users():
    rank = np.random.default_rng(0).integers(1, 5000, 999) / 2 + 0.5
    assert metrics.summarise(rank, 100) == metrics.summarise(rank[::-1].copy(), 100)
