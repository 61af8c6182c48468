"""The mixture against scikit-learn's, and what no number of ranks may change."""

import numpy as np
import pytest
import torch
from clouds import cloud, whole
from ranks import run_on
from sklearn.mixture import GaussianMixture as Reference

from distrec.codes.gmm import GaussianMixture, _Fit
from distrec.codes.mixture.covariance import cholesky
from distrec.codes.mixture.density import Parameters
from distrec.codes.rows import Rows, share, spread
from distrec.runtime import Ranks

KINDS = ("diag", "spherical", "tied", "full")


def start_of(x, k, kind, seed=0):
    """Weights, means and covariances both sides start from: some rows, the data's variance."""
    d = x.shape[1]
    means = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:k]].double()
    variance = x.double().var(0)
    covariances = {
        "diag": variance.expand(k, d),
        "spherical": variance.mean().expand(k),
        "tied": torch.diag(variance),
        "full": torch.diag(variance).expand(k, d, d),
    }[kind]
    return Parameters(torch.full((k,), 1 / k, dtype=torch.float64), means, covariances.contiguous())


def reference(x, k, kind, start, floor=1e-6, **settings):
    """scikit-learn's fit from the same start, with the same absolute floor."""
    inverse = {"tied": torch.linalg.inv, "full": torch.linalg.inv}.get(kind, torch.reciprocal)
    return Reference(
        k,
        covariance_type=kind,
        weights_init=start.weights.numpy(),
        means_init=start.means.numpy(),
        precisions_init=inverse(start.covariances).numpy(),
        reg_covar=floor * float(x.double().var(0, correction=0).mean()),
        init_params="random_from_data",
        **settings,
    ).fit(x.numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_log_likelihood_means_and_weights_equal_scikit_learn(kind):
    x, k = cloud(), 5
    start = start_of(x, k, kind)
    theirs = reference(x, k, kind, start, tol=1e-9, max_iter=60)
    ours = GaussianMixture(k, covariance_type=kind, tol=1e-9, max_iter=60).fit(whole(x, block=128), start)
    assert ours.n_iter_ == theirs.n_iter_
    assert ours.lower_bound_ == pytest.approx(theirs.lower_bound_, abs=1e-9)
    np.testing.assert_allclose(ours.means_, theirs.means_, atol=1e-6)
    np.testing.assert_allclose(ours.weights_, theirs.weights_, atol=1e-6)
    np.testing.assert_allclose(ours.covariances_, theirs.covariances_, atol=1e-5)
    scores = torch.cat([piece for _, piece in ours.log_joint(whole(x, block=128))])
    np.testing.assert_allclose(scores.logsumexp(1), theirs.score_samples(x.numpy()), atol=1e-6)
    np.testing.assert_array_equal(scores.argmax(1), theirs.predict(x.numpy()))


@pytest.mark.parametrize("kind", KINDS)
def test_float32_rows_give_the_float64_fit(kind):
    x, k = cloud(dtype=torch.float32), 5
    start = start_of(x, k, kind)
    theirs = reference(x.double(), k, kind, start, tol=0, max_iter=15)
    ours = GaussianMixture(k, covariance_type=kind, tol=0, max_iter=15).fit(whole(x), start)
    assert ours.lower_bound_ == pytest.approx(theirs.lower_bound_, abs=1e-5)
    np.testing.assert_allclose(ours.means_, theirs.means_, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_log_likelihood_never_falls(kind, dtype):
    x = cloud(n=500, k=9, seed=3, dtype=dtype)
    states = list(GaussianMixture(12, covariance_type=kind, tol=0, max_iter=40, n_init=1).run(whole(x)))
    bounds = np.array([float(state["lower_bound"]) for state in states])
    assert len(bounds) == 40
    assert np.diff(bounds).min() > (-1e-9 if dtype == torch.float64 else -1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_components_than_distinct_rows_neither_falls_nor_crashes(dtype):
    x = cloud(n=30, dtype=dtype).repeat_interleave(50, 0)
    states = list(GaussianMixture(64, n_init=1, max_iter=20, tol=0).run(whole(x)))
    bounds = np.array([float(state["lower_bound"]) for state in states])
    assert np.isfinite(bounds).all()
    assert np.diff(bounds).min() > (-1e-9 if dtype == torch.float64 else -1e-4)


def test_a_dead_component_moves_to_a_badly_explained_row_and_the_likelihood_rises():
    x = cloud(n=400, k=4)
    start = start_of(x, 4, "diag")
    start.means[3] = 1e6  # takes no row
    states = list(GaussianMixture(4, tol=0, max_iter=30).run(whole(x), start=start))
    bounds = np.array([float(state["lower_bound"]) for state in states])
    assert np.diff(bounds).min() > -1e-9
    assert (states[-1]["best_weights"] * len(x) > 1).all()
    stuck = reference(x, 4, "diag", start, tol=0, max_iter=30)
    assert bounds[-1] > stuck.lower_bound_ + 0.05


@pytest.mark.parametrize("kind", ["diag", "tied", "full"])
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_do_not_change_a_bit(kind, size):
    x = cloud(n=900, d=8, k=7, dtype=torch.float32)
    settings = {"covariance_type": kind, "n_init": 2, "max_iter": 8}

    def fit():
        ranks = Ranks.here()
        own = share(len(x), ranks.rank, ranks.size, 128)
        rows = Rows(source=x[own], total=len(x), first=own.start, sum_=ranks.sum_, block=128)
        fitted = GaussianMixture(7, **settings).fit(rows)
        return fitted.lower_bound_, fitted.means_.numpy(), fitted.covariances_.numpy(), fitted.weights_.numpy()

    alone = GaussianMixture(7, **settings).fit(whole(x, block=128))
    for bound, means, covariances, weights in run_on(size, fit):
        assert bound == alone.lower_bound_
        np.testing.assert_array_equal(means, alone.means_)
        np.testing.assert_array_equal(covariances, alone.covariances_)
        np.testing.assert_array_equal(weights, alone.weights_)


def test_a_fit_goes_on_from_any_state_bit_for_bit():
    rows = whole(cloud(n=500, dtype=torch.float32))
    model = GaussianMixture(6, n_init=2, max_iter=6, tol=0)
    states = list(model.run(rows))
    assert len(states) == 12
    for cut in (0, 3, 5, 6, 10):
        resumed = list(model.run(rows, states[cut]))
        assert len(resumed) == len(states) - cut - 1
        for name, value in states[-1].items():
            assert torch.equal(resumed[-1][name], value), name


def test_components_float32_cannot_hold_are_worked_out_in_float64():
    """Thousands of equal rows: a variance at the floor, terms of 1e9 that cancel to nothing."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 40, generator=generator)
    x[:1000] = x[0] + 2
    start = start_of(x, 3, "diag", 1)
    start.means[0] = x[0].double()
    settings = {"tol": 0, "max_iter": 10}
    single = GaussianMixture(3, **settings).fit(whole(x), start)
    double = GaussianMixture(3, **settings).fit(Rows.whole(x, dtype=torch.float64), start)
    assert single.lower_bound_ == pytest.approx(double.lower_bound_, abs=1e-3)
    assert float(single.covariances_.min()) < 1e-5


@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_rows_far_from_the_origin_are_as_likely_in_float32_as_in_float64(kind):
    """It is where the rows lie, not how far they spread, that makes the terms of a log-density cancel."""
    x = 0.1 * cloud(n=300, d=20, dtype=torch.float32) + 100
    start = start_of(x, 4, kind, 1)
    settings = {"tol": 0, "max_iter": 2, "covariance_type": kind}
    single = GaussianMixture(4, **settings).fit(whole(x), start)
    double = GaussianMixture(4, **settings).fit(Rows.whole(x, dtype=torch.float64), start)
    assert single.lower_bound_ == pytest.approx(double.lower_bound_, abs=1e-3)


def test_a_covariance_that_rounding_left_without_a_factor_has_its_eigenvalues_lifted_and_no_other():
    good = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 3.0]], dtype=torch.float64)
    one = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    bad = 6 * torch.outer(one, one) / one.square().sum() - 1e-13 * torch.eye(3)
    factors = cholesky(torch.stack([good, bad]))
    assert torch.equal(factors[0], torch.linalg.cholesky(good))
    values = torch.linalg.eigvalsh(factors[1] @ factors[1].T)
    torch.testing.assert_close(values, torch.tensor([6e-10, 6e-10, 6.0], dtype=torch.float64), atol=1e-13, rtol=1e-3)


def test_full_covariances_of_too_few_rows_are_refused_with_a_remedy():
    with pytest.raises(ValueError, match="10 rows for 16 dimensions: reduce to 5 dimensions or fewer by PCA"):
        GaussianMixture(10, covariance_type="full").fit(whole(torch.randn(100, 16)))
    with pytest.raises(ValueError, match="20 components for 10 rows"):
        GaussianMixture(20).fit(whole(torch.randn(10, 4)))


def test_constant_columns_one_row_and_equal_rows():
    x = cloud(n=300)
    x[:, 2] = 7.0
    for kind in KINDS:
        assert np.isfinite(GaussianMixture(4, covariance_type=kind, n_init=1).fit(whole(x)).lower_bound_)
    for rows in (torch.ones(1, 3), torch.ones(50, 3), torch.zeros(50, 3)):
        fitted = GaussianMixture(1, n_init=1).fit(whole(rows))
        torch.testing.assert_close(fitted.means_, rows[:1].double())


def test_rows_that_are_not_finite_are_counted():
    x = cloud()
    x[3, 1], x[9, 0], x[9, 2] = torch.nan, torch.inf, torch.nan
    with pytest.raises(ValueError, match="2 of 600 rows hold NaN or infinity"):
        GaussianMixture(3).fit(whole(x))


def test_the_whole_fit_is_as_likely_as_scikit_learns():
    x = cloud(n=1500, d=8, k=20, seed=5)
    theirs = Reference(20, covariance_type="diag", n_init=3, random_state=0).fit(x.numpy())
    ours = GaussianMixture(20).fit(whole(x))
    assert ours.lower_bound_ > theirs.lower_bound_ - 0.05


def test_spread_is_numpys_whatever_the_blocks():
    x = cloud(n=777, dtype=torch.float32)
    for block in (64, 1000):
        about = spread(whole(x, block=block))
        np.testing.assert_allclose(about.mean, x.double().mean(0), atol=1e-12)
        np.testing.assert_allclose(about.variance, x.double().var(0, correction=0), rtol=1e-6)
        assert about.bound > float(x.abs().max())


def test_revival_takes_only_what_raises_the_likelihood():
    """Rows that are explained well stay alone; of equal rows one is enough."""
    x = cloud(n=300, d=3, k=2)
    model = GaussianMixture(6, tol=0, max_iter=1)
    fit = _Fit(model, whole(x))
    base = GaussianMixture(2, n_init=1).fit(whole(x))
    far = torch.full((4, 3), 1e4, dtype=torch.float64)
    parameters = Parameters(
        torch.cat([base.weights_, torch.full((4,), 1e-18, dtype=torch.float64)]),
        torch.cat([base.means_, far]),
        torch.cat([base.covariances_, base.covariances_[:1].expand(4, 3)]),
    )
    dead = torch.arange(2, 6)
    same = fit._revive(parameters, dead)
    assert int((same.means[2:] != far).any(1).sum()) < 4
    x[:5] = 40.0
    fit = _Fit(model, whole(x))
    moved = fit._revive(parameters, dead)
    assert int((moved.means[2:] == 40).all(1).sum()) == 1


def test_the_likeliest_of_the_starts_is_kept_and_not_the_last():
    """The first n starts are the same for every n_init: the best of them can only rise."""
    x = cloud(n=300, k=12, d=2, seed=5)
    fits = [GaussianMixture(6, n_init=n, max_iter=30, seed=1).fit(whole(x)) for n in range(1, 7)]
    bounds = np.array([fit.lower_bound_ for fit in fits])
    assert (np.diff(bounds) >= 0).all()
    assert (np.diff(bounds) == 0).any(), "a later start was worse"
    assert (np.diff(bounds) > 0).any(), "a later start was better"
    for fit in fits:  # the parameters are those of the best start, too
        means = torch.cat([piece for _, piece in fit.log_joint(whole(x))]).logsumexp(1).mean()
        assert float(means) >= fit.lower_bound_ - 1e-9
        assert float(means) - fit.lower_bound_ < 0.01


def test_starts_differ_from_one_another_and_the_floor_is_kept():
    x = cloud(n=400, d=4, k=8)
    states = list(GaussianMixture(10, n_init=3, max_iter=1).run(whole(x)))
    bounds = {float(state["best_lower_bound"]) for state in states}
    assert len(bounds) > 1
    one, other = (GaussianMixture(10, n_init=1, max_iter=1, seed=seed).fit(whole(x)).lower_bound_ for seed in (0, 1))
    assert one != other
    floored = GaussianMixture(10, n_init=1, reg_covar=0.5).fit(whole(x))
    assert float(floored.covariances_.min()) >= 0.5 * float(x.var(0, correction=0).mean())


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_fit_does_not_depend_on_the_unit(scale):
    x = cloud(n=400, d=4)
    one = GaussianMixture(4, n_init=1).fit(whole(x))
    other = GaussianMixture(4, n_init=1).fit(whole(x * scale))
    assert other.lower_bound_ == pytest.approx(one.lower_bound_ - 4 * np.log(scale), abs=1e-6)


def test_one_outlier_does_not_coarsen_the_likelihood():
    x = cloud(n=5000, d=32, k=3, dtype=torch.float32)
    x[0, 0] = 1e6
    start = start_of(x, 3, "diag")
    ours = GaussianMixture(3, max_iter=2, tol=0).fit(whole(x), start)
    theirs = reference(x.double(), 3, "diag", start, max_iter=2, tol=0)
    assert ours.lower_bound_ == pytest.approx(theirs.lower_bound_, abs=1e-3)
