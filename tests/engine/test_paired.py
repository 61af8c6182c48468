"""Statistics of paired comparisons, against scipy, enumeration and brute force."""

import itertools

import numpy as np
import pytest
from scipy import stats

from distrec.engine.evaluation import metrics, paired


def cloud(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("n", [1, 2, 5, 9, 12])
def test_few_users_are_enumerated(n):
    found = cloud(3, n) + 0.4
    found[1] = np.round(found[1])  # ties
    signs = np.array(list(itertools.product([1, -1], repeat=n)))
    wanted = [(np.abs(signs @ d) >= abs(d.sum()) - 1e-9).mean() for d in found]
    assert paired.sign_flip(found) == pytest.approx(wanted, abs=1e-12)


def test_scipy_finds_the_same_p_for_few_users():
    d = cloud(10) + 0.5
    wanted = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert paired.sign_flip(d[None])[0] == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.08, 0.15])
def test_drawn_signs_come_near_scipy_s_and_the_normal_limit(shift, monkeypatch):
    d = cloud(1, 500) + shift
    exact = stats.permutation_test(
        (d[0],), np.sum, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(1)
    )
    drawn = paired.sign_flip(d)[0]
    assert drawn == pytest.approx(exact.pvalue, abs=4 * np.sqrt(0.25 / 10_000) + 1e-3)
    monkeypatch.setattr(paired, "MANY_USERS", 499)
    limit = paired.sign_flip(d)[0]
    assert limit != drawn
    assert limit == pytest.approx(drawn, abs=0.02)
    assert limit == pytest.approx(stats.ttest_1samp(d[0], 0).pvalue, abs=0.01)


def test_p_is_never_zero_and_one_where_nothing_differs(monkeypatch):
    same = np.zeros((2, 40))
    same[1] = 1
    assert paired.sign_flip(same).tolist() == [1, 1 / 10_001]
    monkeypatch.setattr(paired, "MANY_USERS", 39)
    found = paired.sign_flip(same)
    assert found[0] == 1
    assert 0 < found[1] < 1e-9


def test_p_is_uniform_where_there_is_no_difference():
    """Hits of two models that are equally good: many users are equal, as in life."""
    rng = np.random.default_rng(0)
    hits = (rng.random((2, 400, 300)) < 0.2).astype(float)
    p = paired.sign_flip(hits[0] - hits[1], draws=999)
    for level in (0.01, 0.05, 0.2, 0.5):
        assert (p <= level).mean() == pytest.approx(level, abs=3.5 * np.sqrt(level * (1 - level) / 400))
    smooth = paired.sign_flip(cloud(400, 50), draws=999)
    assert stats.kstest(smooth, "uniform").pvalue > 0.01


def test_what_should_be_found_is_found_as_often_as_announced():
    d = cloud(300, 200)
    true = np.mean([paired.detectable(row) for row in d])
    assert true == pytest.approx((1.959964 + 0.841621) / np.sqrt(200), rel=0.02)
    share = (paired.sign_flip(d + true, draws=999) <= 0.05).mean()
    assert share == pytest.approx(0.8, abs=0.07)
    assert paired.detectable(np.array([1.0, -1.0])) == pytest.approx(1.959964 + 0.841621)
    assert np.isnan(paired.detectable(np.ones(1)))


def test_comparisons_do_not_depend_on_the_block_in_which_they_are_drawn(monkeypatch):
    d, values = cloud(3, 101) + 0.1, cloud(2, 3, 101)
    whole, means = paired.sign_flip(d, 1000), paired.resampled(values, 50)
    assert whole[1] == paired.sign_flip(d[1:2], 1000)[0]
    monkeypatch.setattr(paired, "_CELLS", 1100)
    assert np.array_equal(paired.sign_flip(d, 1000), whole)
    assert np.allclose(paired.resampled(values, 50), means, atol=1e-12)
    assert not np.array_equal(paired.sign_flip(d, 1000, seed=1), whole)
    assert not np.allclose(paired.resampled(values, 50, seed=1), means)


@pytest.mark.parametrize(("users", "many"), [(9, 10), (60, 100), (60, 50)])
def test_p_does_not_depend_on_the_unit(users, many, monkeypatch):
    monkeypatch.setattr(paired, "MANY_USERS", many)
    d = cloud(3, users) + 0.2
    for unit in (1e-12, 1e12):
        assert paired.sign_flip(unit * d) == pytest.approx(paired.sign_flip(d), rel=1e-9)


def test_sums_that_differ_by_rounding_are_equal():
    d = np.array([1.0, 2, 3, 4, -5, 6, 7])
    assert paired.sign_flip(d[None] / 10) == paired.sign_flip(d[None])


def test_as_many_patterns_as_draws_are_enumerated():
    d = cloud(2, 7) + 0.3
    assert np.array_equal(paired.sign_flip(d, 128), paired.sign_flip(d))
    assert not np.array_equal(paired.sign_flip(d, 127), paired.sign_flip(d))


def test_holm_by_hand():
    found = paired.holm(np.array([0.04, 0.01, 0.03, 0.9]))
    assert found == pytest.approx([0.09, 0.04, 0.09, 0.9])
    assert paired.holm(np.array([0.5, 0.6])).tolist() == [1, 1]
    assert paired.holm(np.array([0.02, 0.02])).tolist() == [0.04, 0.04]
    assert paired.holm(np.array([0.3])).tolist() == [0.3]


def test_users_are_resampled_as_brute_force_does():
    """All 4^4 draws of users, each as likely."""
    values = cloud(1, 2, 4)
    wanted = np.array([values[0][:, list(users)].mean(1) for users in itertools.product(range(4), repeat=4)])
    found = paired.resampled(values, 100_000)[:, 0]
    assert found.mean(0) == pytest.approx(wanted.mean(0), abs=0.01)
    assert np.cov(found.T) == pytest.approx(np.cov(wanted.T, bias=True), abs=0.01)
    for q in (0.1, 0.5, 0.9):  # a discrete law: its steps, to the nearest one
        low, high = (np.quantile(wanted, q + e, axis=0) for e in (-0.02, 0.02))
        assert (np.quantile(found, q, axis=0) >= low - 1e-9).all()
        assert (np.quantile(found, q, axis=0) <= high + 1e-9).all()


def test_one_run_has_the_interval_that_a_run_reports():
    rank = np.random.default_rng(0).geometric(0.05, 3000).astype(float)
    values = metrics.per_user(metrics.Standing(rank - 1, 0 * rank))["ndcg@10"]
    draws = paired.resampled(values[None, None])[:, 0, 0]
    found = paired.interval(values.mean(), draws, [values.mean(keepdims=True)])
    assert found == pytest.approx(
        metrics.summarise(metrics.Standing(rank - 1, 0 * rank), 2000)["ndcg@10_ci"], abs=1.5e-3
    )


def test_seeds_alone_have_student_s_and_welch_s_intervals():
    """Where users hardly differ: scipy's intervals of one sample, and of the difference of two."""
    one, two, flat = cloud(4) + 3, 2 * cloud(3, seed=1), 1e-9 * cloud(2000)
    low, high = stats.t.interval(0.95, 3, one.mean(), stats.sem(one))
    assert paired.interval(one.mean(), flat, [one]) == pytest.approx((low, high))
    wanted = stats.ttest_ind(one, two, equal_var=False).confidence_interval()
    assert paired.interval(one.mean() - two.mean(), flat, [one, two]) == pytest.approx((wanted.low, wanted.high))
    assert paired.interval(1.0, np.ones(9), [np.ones(3)]) == (1, 1)
    narrow = stats.t.interval(0.5, 3, one.mean(), stats.sem(one))
    assert paired.interval(one.mean(), flat, [one], 0.5) == pytest.approx(narrow)
    assert paired.interval(2.0, np.arange(5.0), level=0.5) == (1, 3)


@pytest.mark.parametrize("of_seeds", [0.0, 0.02, 0.2])
def test_intervals_over_users_and_seeds_hold_the_truth(of_seeds):
    rng, held = np.random.default_rng(0), 0
    for trial in range(200):
        noise = (
            of_seeds * rng.standard_normal((3, 1)) + rng.standard_normal((1, 150)) + 0.3 * rng.standard_normal((3, 150))
        )
        draws = paired.resampled(noise.mean(0)[None, None], 300, trial)[:, 0, 0]
        low, high = paired.interval(noise.mean(), draws, [noise.mean(1)])
        held += low <= 0 <= high
    assert 0.90 <= held / 200 <= 0.995


def test_many_users_take_the_normal_limit(monkeypatch):
    values = (np.random.default_rng(0).random((2, 4, 5000)) < 0.2).astype(float)
    values[:, 1] = values[:, 0]  # a singular covariance
    drawn = paired.resampled(values, 4000)
    monkeypatch.setattr(paired, "MANY_USERS", 4999)
    limit = paired.resampled(values, 4000)
    assert not np.array_equal(limit, drawn)
    for q in (0.025, 0.5, 0.975):
        assert np.quantile(limit, q, 0) == pytest.approx(np.quantile(drawn, q, 0), abs=8e-4)
    assert np.cov(limit[:, 0].T) == pytest.approx(np.cov(drawn[:, 0].T), rel=0.15, abs=3e-6)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        d = rng.exponential(size=(1, 1, 120)) - 1
        low, high = paired.interval(d.mean(), paired.resampled(d, 400, trial)[:, 0, 0])
        held += low <= 0 <= high
    assert 0.90 <= held / 200 <= 0.985


def test_users_are_counted_to_rounding():
    third = np.array([0.1 + 0.2, 0.3, 1.0, 0.0]) - np.array([0.3, 0.3, 0.5, 0.5])
    assert paired.counts(third) == (1, 1, 2)
    assert paired.counts(-third) == (1, 1, 2)


def test_a_million_users_fit(monkeypatch):
    d = (np.random.default_rng(0).random((2, 1_000_000)) < 0.5).astype(float) - 0.5
    assert (paired.sign_flip(d) > 1e-4).all()
    assert paired.resampled(d[None]).shape == (2000, 1, 2)
