"""Item graphs against brute force, filters against dense eigendecompositions."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import laplacian
from sklearn.neighbors import kneighbors_graph
from torch.testing import assert_close

from distrec.freq import graph, polynomial

ITEMS = 12
WEIGHTINGS, WINDOWS = ("binary", "count", "lag"), (None, 1, 3)


@pytest.fixture(params=[1 << 21, 16], ids=["one block", "many blocks"])
def block(request, monkeypatch):
    monkeypatch.setattr(graph, "_BLOCK", request.param)


def log(seed, n_users=8, n_items=ITEMS - 2):
    """Sequences in which items repeat, users have 0 or 1 item, and two items are nobody's."""
    rng = np.random.default_rng(seed)
    lengths = np.r_[0, 1, 1, rng.integers(2, 9, n_users)]
    return rng.integers(n_items, size=lengths.sum()), np.r_[0, lengths.cumsum()]


def brute(item, start, window=None, weighting="binary", top_k=None, self_loops=True, n=ITEMS):
    W = np.zeros((n, n))
    for low, high in itertools.pairwise(start):
        own = np.zeros_like(W)
        for a, b in itertools.product(range(low, high), repeat=2):
            if window is None or abs(a - b) <= window:
                own[item[a], item[b]] += 1 / max(abs(a - b), 1) if weighting == "lag" else 1
        W += own > 0 if weighting == "binary" else own
    W = W.astype(np.float32)
    if not self_loops:
        np.fill_diagonal(W, 0)
    if top_k:
        kept = np.diag(np.diag(W))
        for i, row in enumerate(W):
            for j in sorted((j for j in range(n) if j != i and row[j]), key=lambda j: (-row[j], j))[:top_k]:
                kept[i, j] = row[j]
        W = np.maximum(kept, kept.T)
    return W


def adjacency(seed=0, **options):
    return graph.normalise(graph.cooccurrence(*log(seed), ITEMS, **options))


def spectrum(A):
    """(λ, U) of L, in which an item without an edge has a row of zeros."""
    dense = A.toarray().astype(np.float64)
    return np.linalg.eigh(np.diag((dense.sum(1) > 0).astype(np.float64)) - dense)


def filtered(A, x, response):
    values, vectors = spectrum(A)
    return torch.from_numpy(vectors @ (response(values)[:, None] * (vectors.T @ x.double().numpy()))).float()


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("self_loops", [True, False])
@pytest.mark.parametrize("top_k", [None, 1, 3])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_co_occurrence_is_brute_force(weighting, window, top_k, self_loops):
    for seed in range(4):
        options = {"weighting": weighting, "window": window, "top_k": top_k, "self_loops": self_loops}
        item, start = log(seed)
        given = item.copy(), start.copy()
        W = graph.cooccurrence(item, start, ITEMS, **options)
        np.testing.assert_allclose(W.toarray(), brute(item, start, **options), rtol=1e-6)
        assert (W.data.dtype, W.indices.dtype, W.indptr.dtype) == (np.float32, np.int32, np.int32)
        assert W.nnz == np.count_nonzero(W.toarray())
        assert W.has_canonical_format
        assert np.array_equal(item, given[0])
        assert np.array_equal(start, given[1])


def test_the_published_graph_is_the_product_of_a_binary_matrix_and_itself():
    item, start = log(1)
    R = np.zeros((len(start) - 1, ITEMS))
    R[np.repeat(np.arange(len(start) - 1), np.diff(start)), item] = 1
    W = graph.cooccurrence(item, start, ITEMS)
    assert np.array_equal(W.toarray(), R.T @ R)
    assert np.array_equal(W.diagonal(), R.sum(0))
    for weighting in WEIGHTINGS:
        for window in WINDOWS:
            held = graph.cooccurrence(item, start, ITEMS, window=window, weighting=weighting).diagonal()
            assert (held >= (R.sum(0) if weighting == "binary" else np.bincount(item, minlength=ITEMS))).all()


@pytest.mark.parametrize("types", [(np.int32, np.int32), (np.int64, np.int32), (np.uint16, np.uint32)])
def test_any_whole_numbers_will_do(types):
    item, start = log(0)
    own = item.astype(types[0]), start.astype(types[1])
    for options in ({}, {"window": 2, "weighting": "lag", "top_k": 2}):
        wanted = graph.cooccurrence(item, start, ITEMS, **options)
        assert np.array_equal(graph.cooccurrence(*own, ITEMS, **options).toarray(), wanted.toarray())


def test_sessions_cut_long_pauses():
    start, time = np.array([0, 4, 4, 7]), np.array([0, 5, 20, 21, 3, 90, 100])
    assert graph.sessions(start, time, 10).tolist() == [0, 2, 4, 5, 7]
    assert graph.sessions(start, time.astype(np.float64), 1e9).tolist() == [0, 4, 7]
    item = np.array([0, 1, 2, 3, 4, 5, 6])
    W = graph.cooccurrence(item, graph.sessions(start, time, 10), 7, self_loops=False)
    assert set(zip(*W.nonzero(), strict=True)) == {(0, 1), (1, 0), (2, 3), (3, 2), (5, 6), (6, 5)}


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("k", [1, 4, 99])
def test_neighbours_are_those_of_scikit_learn(k, monkeypatch):
    monkeypatch.setattr(graph, "_ROWS", 8)
    x = torch.randn(50, 5, generator=torch.Generator().manual_seed(k))
    theirs = kneighbors_graph(x.numpy(), min(k, 49), mode="distance", metric="cosine", include_self=False)
    wanted = np.zeros((50, 50))
    rows, columns = theirs.nonzero()
    wanted[rows, columns] = np.maximum(1 - theirs.toarray()[rows, columns], 0)
    W = graph.neighbours(x, k)
    np.testing.assert_allclose(W.toarray(), np.maximum(wanted, wanted.T), atol=1e-6)
    assert (W.toarray() == W.toarray().T).all()


def test_vectors_that_have_no_neighbours():
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 1e-20], [-1.0, 0.0], [0.0, 1e-30], [0.0, 3.0]])
    dense = graph.neighbours(x, 3).toarray()
    assert set(zip(*dense.nonzero(), strict=True)) >= {(0, 2), (2, 0), (4, 5), (5, 4)}
    assert not dense[[1, 3]].any()
    assert not dense[:, [1, 3]].any()
    assert graph.neighbours(torch.zeros(0, 4), 2).shape == (0, 0)
    assert graph.neighbours(torch.ones(1, 4), 2).nnz == 0


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("options", [{}, {"self_loops": False}, {"window": 2, "weighting": "lag"}, {"top_k": 2}])
def test_the_adjacency_is_symmetric_and_bounded(options):
    for seed in range(5):
        A = adjacency(seed, **options)
        dense = A.toarray()
        assert np.array_equal(dense, dense.T)
        assert np.isfinite(dense).all()
        assert not dense[ITEMS - 2 :].any()
        values = np.linalg.eigvalsh(dense.astype(np.float64))
        low = 0 if not options else -1
        assert low - 1e-6 <= values.min() <= values.max() <= 1 + 1e-6


def test_the_laplacian_is_that_of_scipy():
    item, start = log(4)
    W = graph.cooccurrence(item, start, ITEMS, weighting="lag", self_loops=False)
    x = torch.eye(ITEMS)
    ours = polynomial.polynomial(graph.normalise(W), x, [0.0, 1.0])
    np.testing.assert_allclose(ours, laplacian(W.toarray().astype(np.float64), normed=True), atol=1e-6)


def test_normalising_copies_values_alone_or_nothing():
    W = graph.cooccurrence(*log(0), ITEMS)
    before, A = W.data.copy(), graph.normalise(W)
    assert np.array_equal(W.data, before)
    assert np.shares_memory(A.indices, W.indices)
    own = graph.normalise(W, in_place=True)
    assert np.shares_memory(own.data, W.data)
    assert np.array_equal(own.data, A.data)
    counts = csr_array(np.array([[2, 2], [2, 2]]))
    assert (graph.normalise(counts, in_place=True).toarray() == 0.5).all()
    assert (counts.data == 2).all()


@pytest.mark.parametrize("options", [{}, {"self_loops": False}])
def test_filters_are_those_of_a_dense_eigendecomposition(options):
    A, x = adjacency(3, **options), torch.randn(ITEMS, 7)
    for alpha, order in ((0.7, 1), (1.0, 2), (0.3, 5)):
        wanted = filtered(A, x, lambda t, a=alpha, n=order: (1 - a * t) ** n)
        assert_close(polynomial.low_pass(A, x, alpha, order), wanted, atol=1e-5, rtol=1e-5)
    for c in ([2.0], [0.5, -1.0], [1.0, 0.3, -0.2, 0.1]):
        wanted = filtered(A, x, np.polynomial.Polynomial(c))
        assert_close(polynomial.polynomial(A, x, c), wanted, atol=1e-5, rtol=1e-5)
        wanted = filtered(A, x, lambda t, c=c: np.polynomial.chebyshev.chebval(t - 1, c))
        assert_close(polynomial.chebyshev(A, x, c), wanted, atol=1e-5, rtol=1e-5)
    energy = (x.double() * filtered(A, x, lambda t: t)).sum(0) / x.double().square().sum(0)
    assert_close(polynomial.rayleigh(A, x), energy.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "response", [lambda t: np.exp(-3 * t), lambda t: 1 / np.sqrt(1 + (t / 0.8) ** 4)], ids=["heat", "Butterworth"]
)
def test_any_response_can_be_fitted(response):
    A, x = adjacency(2), torch.randn(ITEMS, 3)
    c = polynomial.chebyshev_coefficients(response, 40)
    np.testing.assert_allclose(c, np.polynomial.chebyshev.chebinterpolate(lambda t: response(t + 1), 40), atol=1e-12)
    assert_close(polynomial.chebyshev(A, x, c), filtered(A, x, response), atol=2e-5, rtol=1e-5)
    assert polynomial.chebyshev_coefficients(lambda t: t, 0) == pytest.approx([1])


def test_nothing_changes_at_alpha_0_nor_ever_an_item_without_an_edge():
    A, x = adjacency(1), torch.randn(ITEMS, 4)
    assert torch.equal(polynomial.low_pass(A, x, 0.0, 3), x)
    y = polynomial.low_pass(A, x, 0.7, 3)
    assert torch.equal(y[-2:], x[-2:])
    assert not torch.equal(y[:-2], x[:-2])
    loud = torch.randn(ITEMS, 500)
    for alpha, order in ((0.1, 4), (0.7, 5), (0.9, 9)):  # to the last bit, where 1 − α and α of it would round
        assert torch.equal(polynomial.low_pass(A, loud, alpha, order)[-2:], loud[-2:])
    assert_close(polynomial.polynomial(A, x, [0.5, 3.0, 1.0])[-2:], 0.5 * x[-2:])
    assert_close(polynomial.chebyshev(A, x, [0.5, 0.2, 0.1])[-2:], 0.4 * x[-2:])


def test_the_smoothest_signal_passes():
    A = adjacency(0)
    degree = torch.from_numpy(graph.cooccurrence(*log(0), ITEMS).sum(1)).float()
    x = degree.sqrt()[:, None]
    assert_close(polynomial.low_pass(A, x, 1.0, 4), x)
    assert float(polynomial.rayleigh(A, x)) == pytest.approx(0, abs=1e-6)
    assert polynomial.rayleigh(A, torch.zeros(ITEMS, 1)).tolist() == [0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.integers(1, 5))
def test_the_rayleigh_quotient_does_not_increase(seed, alpha, order):
    A = adjacency(seed)
    x = torch.randn(ITEMS, 3, generator=torch.Generator().manual_seed(seed))
    assert (polynomial.rayleigh(A, polynomial.low_pass(A, x, alpha, order)) <= polynomial.rayleigh(A, x) + 1e-5).all()


def test_precision_autocast_layout_and_gradient():
    A, x = adjacency(0), torch.randn(4, ITEMS).T.requires_grad_()
    y = polynomial.low_pass(A, x, 0.7, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(polynomial.low_pass(A, x, 0.7, 2), y)
    half = x.detach().bfloat16()
    assert torch.equal(polynomial.low_pass(A, half, 0.7), polynomial.low_pass(A, half.float(), 0.7).bfloat16())
    assert (
        polynomial.polynomial(A, half, [1.0, 1.0]).dtype
        == polynomial.chebyshev(A, half, [1.0, 1.0]).dtype
        == torch.bfloat16
    )
    weight = torch.randn(ITEMS, 4)
    (y * weight).sum().backward()
    assert_close(x.grad, polynomial.low_pass(A, weight, 0.7, 2), atol=1e-5, rtol=1e-5)  # the filter is symmetric


@pytest.mark.parametrize("options", [{}, {"window": 2}, {"weighting": "lag", "top_k": 1}, {"self_loops": False}])
def test_an_empty_graph(options):
    for n, start in ((5, [0]), (5, [0, 0, 0]), (0, [0, 0])):
        W = graph.cooccurrence(np.zeros(0, np.int64), np.array(start), n, **options)
        A, x = graph.normalise(W), torch.randn(n, 3)
        assert A.shape == (n, n)
        assert A.nnz == 0
        assert torch.equal(polynomial.low_pass(A, x, 0.7), x)
        assert_close(polynomial.polynomial(A, x, [1.0, 2.0]), x)
        assert polynomial.rayleigh(A, x).tolist() == [0, 0, 0]


ONE = csr_array(np.eye(3, dtype=np.float32))
ITEM, START, X = np.array([0, 1, 2]), np.array([0, 3]), torch.ones(3, 2)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda: graph.cooccurrence(ITEM, START, 2), "items 0 to 2 do not fit n_items=2"),
        (lambda: graph.cooccurrence(ITEM - 1, START, 3), "items -1 to 1"),
        (lambda: graph.cooccurrence(ITEM, np.array([0, 2]), 3), "from 0 to the 3 interactions"),
        (lambda: graph.cooccurrence(ITEM, np.array([1, 3]), 3), "from 0 to the 3 interactions"),
        (lambda: graph.cooccurrence(ITEM, np.array([0, 3, 2, 3]), 3), "from 0 to the 3 interactions"),
        (lambda: graph.cooccurrence(ITEM, np.array([], np.int64), 3), "from 0 to the 3 interactions"),
        (lambda: graph.cooccurrence(ITEM, START, 3, window=0), "window=0 is below 1"),
        (lambda: graph.cooccurrence(ITEM, START, 3, top_k=0), "top_k=0 is below 1"),
        (lambda: graph.sessions(START, ITEM, -1.0), "gap=-1.0"),
        (lambda: graph.neighbours(X, 0), "k=0"),
        (lambda: graph.neighbours(X * torch.nan, 1), "not finite"),
        (lambda: graph.normalise(ONE[:2]), "not square"),
        (lambda: graph.normalise(-ONE), "must be positive"),
        (lambda: graph.normalise(ONE * 0), "must be positive"),
        (lambda: graph.normalise(ONE * np.float32(np.nan)), "must be positive"),
        (lambda: polynomial.low_pass(ONE, X, 1.1), r"alpha=1.1 lies outside \[0, 1\]"),
        (lambda: polynomial.low_pass(ONE, X, float("nan")), "alpha=nan"),
        (lambda: polynomial.low_pass(ONE, X, 0.5, 0), "order=0 is below 1"),
        (lambda: polynomial.low_pass(ONE, X[:2], 0.5), "cannot filter 2 items"),
        (lambda: polynomial.polynomial(ONE, X, []), "no coefficients"),
        (lambda: polynomial.chebyshev(ONE, X, []), "no coefficients"),
        (lambda: polynomial.chebyshev_coefficients(np.exp, -1), "order=-1"),
    ],
)
def test_bad_input(work, message):
    with pytest.raises(ValueError, match=message):
        work()
