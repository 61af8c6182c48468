"""Energies against closed forms, scipy's DCT and dense eigendecompositions."""

import numpy as np
import pytest
import scipy.fft
import torch
from scipy.sparse import csr_array

from distrec.freq import measure as big
from distrec.freq.energy import bands, cosines, eigenvectors, lowest, power
from distrec.freq.graph import cooccurrence, normalise
from distrec.freq.polynomial import low_pass


def weights(*shape, seed=0):
    drawn = torch.rand(*shape, shape[-1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (drawn + drawn.mT) * (1 - torch.eye(shape[-1], dtype=torch.float64))


def test_the_basis_of_time_is_scipys_dct():
    x = np.random.default_rng(0).normal(size=(11, 3))
    np.testing.assert_allclose(cosines(11).vectors.numpy().T @ x, scipy.fft.dct(x, axis=0, norm="ortho"), atol=1e-12)
    np.testing.assert_allclose(cosines(1).vectors.numpy(), [[1]])


def test_the_basis_of_a_graph_is_that_of_its_laplacian():
    w = weights(3, 9)
    w[1, 4] = w[1, :, 4] = 0  # an item without an edge
    basis = eigenvectors(w).vectors
    for graph, found in zip(w.numpy(), basis.numpy(), strict=True):
        scale = np.divide(1, np.sqrt(graph.sum(1)), where=graph.sum(1) > 0, out=np.zeros(9))
        laplacian = np.diag((graph.sum(1) > 0).astype(float)) - scale[:, None] * graph * scale
        values = (found.T @ laplacian @ found).diagonal()
        np.testing.assert_allclose(values, np.linalg.eigvalsh(laplacian), atol=1e-12)
    lowest_of_connected = w[0].sum(1).sqrt() / w[0].sum().sqrt()
    torch.testing.assert_close(basis[0, :, 0].abs(), lowest_of_connected)


@pytest.mark.parametrize("n", [4, 10, 19, 100])
def test_bands_sum_to_one_and_empty_ones_are_told(n):
    found = bands(power(torch.randn(2, n, 8), eigenvectors(weights(n))), 10)
    torch.testing.assert_close(found.share.nansum(-1), torch.ones(2, dtype=torch.float64))
    assert float(found.noise.nansum()) == pytest.approx(1)
    assert int(found.share[0].isnan().sum()) == max(0, 10 - n)
    sizes = (found.noise * n).nan_to_num().round()
    assert float(sizes.max() - sizes.min()) <= 1
    with pytest.raises(ValueError, match="0 bands"):
        bands(torch.ones(3) / 3, 0)


@pytest.mark.parametrize(("n", "n_bands"), [(4, 10), (7, 3), (19, 10), (30, 4)])
def test_a_band_holds_the_frequencies_that_its_bounds_say(n, n_bands):
    drawn = torch.rand(2, n, dtype=torch.float64)
    found = bands(drawn, n_bands)
    for k in range(n_bands):
        low, high = n * k // n_bands, n * (k + 1) // n_bands
        wanted = drawn[:, low:high].sum(1) if high > low else torch.full((2,), torch.nan, dtype=torch.float64)
        torch.testing.assert_close(found.share[:, k], wanted, equal_nan=True)


@pytest.mark.parametrize(("n", "share", "kept"), [(8, 0.25, 2), (9, 0.25, 3), (5, 0.25, 2), (1, 0.25, 1), (5, 0.5, 3)])
def test_the_lowest_share_is_rounded_up_to_whole_frequencies(n, share, kept):
    assert float(lowest(torch.ones(n), share)) == kept


def test_noise_and_constants_have_their_shares():
    draw = torch.Generator().manual_seed(0)
    noise = power(torch.randn(40, 20_000, generator=draw), eigenvectors(weights(40)))
    torch.testing.assert_close(noise, torch.full_like(noise, 1 / 40), atol=2e-3, rtol=0)
    assert float(lowest(noise)) == pytest.approx(0.25, abs=3e-3)
    constant = power(torch.ones(12, 3), cosines(12))
    assert float(constant[0]) == pytest.approx(1)
    wave = power(cosines(12).vectors[:, 7:8].float().expand(12, 4), cosines(12), unit=False)
    assert float(wave[7]) == pytest.approx(1)


def test_methods_1_3_users_graphs_are_complete_and_call_a_constant_low():
    """A user makes all pairs of theirs co-occur: white noise has .276, what never changes .995."""
    w = 1 + 0.3 * weights(30)
    w = w * (1 - torch.eye(30, dtype=torch.float64))
    assert float(lowest(power(torch.ones(30, 4), eigenvectors(w)))) > 0.99


def test_equal_frequencies_share_what_they_hold():
    """A complete graph of equal weights has one frequency beside the lowest: no order of its eigenvectors is the right one."""
    w = torch.ones(8, 8, dtype=torch.float64) - torch.eye(8, dtype=torch.float64)
    states = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = power(states, eigenvectors(w))
    torch.testing.assert_close(found[1:], found[1:].mean().expand(7))
    torch.testing.assert_close(power(states.flip(0), eigenvectors(w)), found)
    w[2:] = w[:, 2:] = 0  # six places without an edge, at frequency 0 with the constant of the other two
    burst = torch.zeros(8, 1, dtype=torch.float64)
    burst[5] = 1
    torch.testing.assert_close(
        power(burst, eigenvectors(w), unit=False)[:7], torch.full((7,), 1 / 7, dtype=torch.float64)
    )


def test_one_loud_state_does_not_drown_the_others():
    basis, states = eigenvectors(weights(30)), torch.randn(30, 16)
    loud = states.clone()
    loud[0] *= 1e4
    torch.testing.assert_close(power(loud, basis), power(states, basis), atol=1e-6, rtol=0)
    assert float((power(loud, basis, unit=False) - power(states, basis, unit=False)).abs().max()) > 0.01


def sparse(n, seed=0, isolated=2):
    rng = np.random.default_rng(seed)
    dense = np.triu(rng.random((n, n)) * (rng.random((n, n)) < 8 / n), 1)
    dense[:isolated] = dense[:, :isolated] = 0
    return normalise(csr_array(dense + dense.T))


def spectrum(A):
    alone = np.diff(A.indptr) == 0
    return np.linalg.eigh(np.eye(A.shape[0]) - A.toarray() - np.diag(alone.astype(float)))


@pytest.mark.parametrize("n", [80, 400])
def test_lanczos_is_the_dense_result(n):
    A, x = sparse(n), torch.randn(n, 40, generator=torch.Generator().manual_seed(1))
    values = spectrum(A)[0]
    gaps = np.argsort(-np.diff(values))[:6]
    edges = big.Edges(np.sort(values[gaps] + np.diff(values)[gaps] / 2), np.zeros(6))
    for signal in (x, low_pass(A, x, 0.9, 3)):
        exact = big.Frequencies(A).measure(signal)
        assert exact.is_exact
        near = big.lanczos(A, signal, n)
        np.testing.assert_allclose(near.below(edges), exact.below(edges), atol=1e-4)
        assert near.energy.sum() == pytest.approx(1)


def test_a_large_graph_takes_lanczos_and_agrees(monkeypatch):
    A, x = sparse(700), torch.randn(700, 8, generator=torch.Generator().manual_seed(1))
    smooth = low_pass(A, x, 0.9, 4)
    graph = big.Frequencies(A)
    exact = graph.measure(smooth), graph.noise
    edges = exact[1].quantiles(np.array([0.25, 0.5, 0.75]))
    monkeypatch.setattr(big, "DENSE", 100)
    graph = big.Frequencies(A)
    near = graph.measure(smooth), graph.noise
    assert not near[0].is_exact
    np.testing.assert_allclose(near[0].below(edges), exact[0].below(edges), atol=0.02)
    np.testing.assert_allclose(near[1].below(edges), [0.25, 0.5, 0.75], atol=0.02)
    assert exact[0].below(edges)[0] > 0.6  # smooth is low


def test_the_lowest_shares_are_projections_and_a_polynomial_comes_near(monkeypatch):
    A, x = sparse(600), torch.randn(600, 6, generator=torch.Generator().manual_seed(1))
    smooth = low_pass(A, x, 0.9, 3)
    shares = [0.0, 0.1, 0.3, 0.5, 0.7, 1.0]
    vectors = torch.from_numpy(spectrum(A)[1])
    oracle = [vectors[:, : round(s * 600)] @ (vectors[:, : round(s * 600)].T @ smooth.double()) for s in shares]
    exact = list(big.Frequencies(A).lowest(smooth, shares))
    for found, right in zip(exact, oracle, strict=True):
        torch.testing.assert_close(found.double(), right, atol=1e-5, rtol=0)
    monkeypatch.setattr(big, "DENSE", 100)
    graph = big.Frequencies(A)
    near = list(graph.lowest(smooth, shares))
    assert not graph.is_exact
    for found, right in zip(near[1:], oracle[1:], strict=True):
        assert float((found - right).norm() / right.norm()) < 0.1
    assert torch.equal(near[-1], smooth)
    assert not near[0].any()
    with pytest.raises(ValueError, match="one catalogue"):
        next(graph.lowest(torch.ones(599, 1), shares))


def shared(users, n=600, seed=0):
    """Fewer users than items: so many frequencies are one; and some items stand alone."""
    rng = np.random.default_rng(seed)
    items = [rng.permutation(n - 60)[:20] for _ in range(users)]
    return normalise(cooccurrence(np.concatenate(items), np.arange(users + 1) * 20, n), in_place=True)


@pytest.mark.parametrize("most", [2048, 100])
def test_what_lies_at_a_common_frequency_is_split_by_rank(monkeypatch, most):
    A, x = shared(150), torch.randn(600, 64, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(big, "DENSE", most)
    graph, shares = big.Frequencies(A), np.array([0.02, 0.1, 0.3, 0.5, 0.75, 0.9])
    edges = graph.noise.quantiles(shares)
    assert graph.noise.below(edges) == pytest.approx(shares, abs=1e-9)
    assert graph.measure(x).below(edges) == pytest.approx(shares, abs=0.02)


def test_common_frequencies_are_kept_with_all_that_have_them_or_not_at_all(monkeypatch):
    A, x = shared(150), torch.randn(600, 64, generator=torch.Generator().manual_seed(2))
    values, vectors = spectrum(A)
    exact = big.Frequencies(A)
    shares = [0.02, 0.2, 0.6, 0.9]
    for share, found in zip(shares, exact.lowest(x, shares), strict=True):
        response = exact.response(share)
        kept = int(response.sum())
        basis = torch.from_numpy(vectors[:, :kept])
        torch.testing.assert_close(found.double(), basis @ (basis.T @ x.double()), atol=1e-5, rtol=0)
    alone, below = int((values < 1e-5).sum()), int((values < 1 - 1e-5).sum())
    assert [int(exact.response(share).sum()) for share in shares] == [alone, 120, below, 600]
    assert alone >= 60
    monkeypatch.setattr(big, "DENSE", 100)
    near = big.Frequencies(A)
    for share, found in zip(shares, near.lowest(x, shares), strict=True):
        told = near.noise.energy @ near.response(share) ** 2
        assert told == pytest.approx(share, abs=1e-6)
        assert float(found.square().sum() / x.square().sum()) == pytest.approx(told, abs=0.02)


def test_a_channel_that_touches_one_frequency_ends_early():
    A = sparse(60)
    value, vectors = spectrum(A)
    x = torch.from_numpy(vectors[:, [20]]).float()
    found = big.lanczos(A, x, 20)
    around = big.Edges(value[[20, 20]] + np.array([-1e-3, 1e-3]), np.zeros(2))
    assert found.below(around) == pytest.approx([0, 1], abs=1e-4)


@pytest.mark.parametrize(("edge", "top"), [(0.3, 2.0), (1.1, 1.6)])
def test_a_step_s_polynomial_is_its_chebyshev_series_under_jacksons_kernel(edge, top):
    """Coefficients by a sum over angles; the kernel's factors are the autocorrelation of half a sine."""
    angle = (np.arange(400_000) + 0.5) * np.pi / 400_000
    step = (np.cos(angle) + 1) * top / 2 <= edge
    half = np.sin(np.pi * np.arange(1, big.ORDER + 2) / (big.ORDER + 2))
    factors = np.correlate(half, half, "full")[big.ORDER :] / (half @ half)
    for k in (0, 1, 2, 50, big.ORDER):
        wanted = factors[k] * (np.cos(k * angle) * step).mean() * (2 if k else 1)
        assert big._step(edge, top)[k] == pytest.approx(wanted, abs=1e-5)


def test_probes_of_white_noise_are_those_of_the_seed(monkeypatch):
    monkeypatch.setattr(big, "DENSE", 10)
    one, same, other = (big.Frequencies(sparse(60), 8, seed).noise.energy for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_wrong_input_is_told():
    A = sparse(20)
    with pytest.raises(ValueError, match="one catalogue"):
        big.Frequencies(A).measure(torch.ones(19, 1))
    with pytest.raises(ValueError, match="no energy"):
        big.Frequencies(A).measure(torch.zeros(20, 1))
    with pytest.raises(ValueError, match="at least 2"):
        big.Frequencies(A, 1)
