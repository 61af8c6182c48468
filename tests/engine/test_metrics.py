"""Metrics of ranks and of ties, against scikit-learn, exact fractions and every order of the ties."""

import itertools
from fractions import Fraction

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import ndcg_score

from distrec.engine.evaluation import metrics
from distrec.engine.evaluation.metrics import Standing


def alone(rank):
    """Nobody ties."""
    return Standing(np.asarray(rank, float) - 1, np.zeros(len(rank)))


def drawn(n, seed=0):
    """A few of everything: alone, ties inside a cutoff, across it, beyond it, and targets that are not listed."""
    rng = np.random.default_rng(seed)
    better, ties = rng.integers(0, 25, n).astype(float), rng.integers(0, 9, n) * (rng.random(n) < 0.6)
    is_lost = rng.random(n) < 0.1
    return Standing(np.where(is_lost, np.inf, better), np.where(is_lost, 0, ties).astype(float))


def test_ndcg_and_hits_equal_scikit_learn_s():
    rng = np.random.default_rng(0)
    rank = rng.integers(1, 31, 200).astype(float)
    relevance = np.zeros((200, 30))
    relevance[np.arange(200), rank.astype(int) - 1] = 1
    scores = np.tile(np.arange(30, 0, -1), (200, 1))
    ours = metrics.summarise(alone(rank))
    for k in metrics.CUTOFFS:
        assert ours[f"ndcg@{k}"] == pytest.approx(ndcg_score(relevance, scores, k=k))
        assert ours[f"hr@{k}"] == pytest.approx((rank <= k).mean())
    assert ours["mrr"] == pytest.approx((1 / rank).mean())


def test_ndcg_of_ties_equals_scikit_learn_s():
    """Which averages the gain over ties (McSherry & Najork 2008)."""
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 6, (300, 30)).astype(float)
    relevance = np.zeros((300, 30))
    relevance[:, 0] = 1
    others, own = scores[:, 1:], scores[:, :1]
    ours = metrics.summarise(Standing((others > own).sum(1).astype(float), (others == own).sum(1).astype(float)))
    for k in metrics.CUTOFFS:
        assert ours[f"ndcg@{k}"] == pytest.approx(ndcg_score(relevance, scores, k=k))


@pytest.mark.parametrize("better", [0, 1, 3, 9, 10, 19, 20])
@pytest.mark.parametrize("ties", range(6))
def test_ties_equal_the_mean_over_every_order_of_them(better, ties):
    items = ["target", *range(ties)]
    ranks = np.array([better + 1 + order.index("target") for order in itertools.permutations(items)])
    ours = metrics.per_user(Standing(np.array([better], float), np.array([ties], float)))
    for k in metrics.CUTOFFS:
        assert ours[f"hr@{k}"][0] == pytest.approx((ranks <= k).mean(), abs=1e-15)
        assert ours[f"ndcg@{k}"][0] == pytest.approx(((ranks <= k) / np.log2(1 + ranks)).mean(), abs=1e-15)
    assert ours["mrr"][0] == pytest.approx((1 / ranks).mean(), rel=1e-13)


@pytest.mark.parametrize(("better", "ties"), [(0, 100_000), (5, 1), (12_345, 1), (10**6, 7), (10**7, 1), (999, 3_000)])
def test_reciprocal_ranks_of_large_ties_are_exact(better, ties):
    ranks = range(better + 1, better + ties + 2)
    wanted = float(sum(Fraction(1, r) for r in ranks)) / len(ranks) if ties < 50 else np.mean(1 / np.array(ranks))
    ours = metrics.per_user(Standing(np.array([better], float), np.array([ties], float)))["mrr"][0]
    assert ours == pytest.approx(wanted, rel=1e-7, abs=1e-15)


def test_without_ties_every_bit_is_that_of_the_plain_formulas():
    rank = np.r_[np.arange(1, 2000), np.inf]
    found, gain = metrics.per_user(alone(rank)), 1 / np.log2(1 + rank)
    for k in metrics.CUTOFFS:
        assert np.array_equal(found[f"hr@{k}"], (rank < k + 1).astype(float))
        assert np.array_equal(found[f"ndcg@{k}"], np.where(rank < k + 1, gain, 0.0))
    assert np.array_equal(found["mrr"], 1 / rank)
    assert np.array_equal(alone(rank).rank, rank)


def test_infinite_ranks_count_nothing():
    found = metrics.summarise(alone([np.inf, 1.0]))
    assert found["hr@10"] == 0.5
    assert found["mrr"] == 0.5


def test_the_bootstrap_over_ranks_is_the_bootstrap_over_users():
    rng = np.random.default_rng(0)
    rank = rng.geometric(0.1, 400).astype(float)
    ours = metrics.summarise(alone(rank), 4000)
    hits = rank <= 10
    plain = np.quantile([rng.choice(hits, 400).mean() for _ in range(4000)], [0.025, 0.975])
    np.testing.assert_allclose(ours["hr@10_ci"], plain, atol=0.006)
    assert ours["hr@10_ci"][0] < ours["hr@10"] < ours["hr@10_ci"][1]


def test_users_who_stand_alike_are_counted_once_and_no_others():
    standing = drawn(3000)
    found = metrics.summarise(standing)
    for name, values in metrics.per_user(standing).items():
        assert found[name] == pytest.approx(values.mean(), rel=1e-12)


def test_figures_do_not_depend_on_the_order_of_users():
    standing = drawn(999)
    assert metrics.summarise(standing, 100) == metrics.summarise(standing.of(np.arange(999)[::-1]), 100)


def test_a_table_gives_back_what_it_got(tmp_path):
    standing = drawn(200)
    standing.better[7] = standing.ties[7] = np.nan  # nothing was measured of this one
    table = pl.DataFrame({"user": range(200), **standing.columns(), **standing.columns("free")})
    assert table.columns == ["user", "rank", "better", "ties", "rank_free", "better_free", "ties_free"]
    assert table["better"].dtype == table["ties"].dtype == pl.Int64
    table.write_parquet(tmp_path / "ranks.parquet")
    for name in ("", "free"):
        found = metrics.standing(pl.read_parquet(tmp_path / "ranks.parquet"), name)
        np.testing.assert_array_equal(found.better, standing.better)
        np.testing.assert_array_equal(found.ties, standing.ties)
    assert table["rank"].null_count() == 1
    assert (table["rank"].drop_nulls().to_numpy() == np.delete(standing.rank, 7)).all()
