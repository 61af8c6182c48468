"""Quantisers under the pretended GPU: the CPU's bits, nothing refused, and few waits, however many blocks there are."""

import json
from itertools import pairwise

import pytest
import torch
from clouds import cloud
from conftest import ROOT
from pretended import Gpu
from torch.overrides import TorchFunctionMode

from distrec import config as cfg
from distrec.codes.gmm import GaussianMixture, _Fit
from distrec.codes.kmeans import KMeans, lloyd
from distrec.codes.mixture import density
from distrec.codes.mixture.density import Parameters
from distrec.codes.mixture.precision import factor, product, tf32
from distrec.codes.rows import Rows, largest
from distrec.codes.transfer import streamed
from distrec.jobs.codes import fit as job
from distrec.models import quantisers
from distrec.runtime import Ranks

FITS = {
    "diag": ["codes.name=gmm", "codes.max_iter=3", "codes.n_init=2", "codes.levels=1"],
    "spherical": ["codes.name=gmm", "codes.covariance=spherical", "codes.n_init=1", "codes.max_iter=4"],
    "tied": ["codes.name=gmm", "codes.covariance=tied", "codes.n_init=1", "codes.max_iter=4"],
    "full": [
        "codes.name=gmm",
        "codes.covariance=full",
        "codes.pca=3",
        "codes.assignment=posterior",
        "codes.n_init=1",
        "codes.max_iter=4",
    ],
    "kmeans": ["codes.name=kmeans", "codes.levels=2"],
    "balanced": ["codes.name=balanced", "codes.max_iter=4"],
    "spectral": ["codes.name=spectral", "codes.neighbours=5", "codes.landmarks=200"],
    "rqvae": ["codes.name=rqvae", "codes.hidden=[16]", "codes.latent=4", "codes.epochs=4", "codes.batch=150"],
}
# of an iteration (an epoch); of a balanced one: a round of dealing and four more; of spectral clustering: a level
WAITS = {"diag": 2, "spherical": 2, "tied": 4, "full": 3, "kmeans": 2, "balanced": 15, "spectral": 45, "rqvae": 2}
HOST, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def in_parts(monkeypatch):
    """A GPU's products, on the CPU too."""
    monkeypatch.setattr(density, "in_parts", lambda _: True)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(job, "BLOCK", 64)


def table(n=300, d=8):
    x = cloud(n=n, d=d, k=12, dtype=torch.float32).half()
    x[:60] = x[0]  # a component that is worked out in float64
    return x.numpy()


def finished(name, rows, gpu=None):
    """(every tensor of a finished fit, codes by what it stores included; the waits until each of its states)."""
    config = cfg.load(["codes.levels=1", *FITS[name], "codes.size=8"]).codes
    fit = quantisers.build(config, 8, 0)
    turned, basis = job.turned(rows, getattr(config, "pca", None))
    waits, states = [], []
    for state in fit.run(turned):
        states.append(state)
        waits.append(sum(gpu.waits.values()) if gpu else 0)
    stored = quantisers.tensors_of(fit) | {name: value.cpu() for name, value in basis.items()}
    again = quantisers.codes_of(rows, stored, config)
    tensors = {**states[-1], **stored, "codes": fit.codes_, "again": again}
    return {name: value.detach().cpu().as_subclass(torch.Tensor) for name, value in tensors.items()}, waits


@pytest.mark.parametrize("free", [2**30, 1000])
@pytest.mark.parametrize("name", FITS)
def test_fits_have_the_cpus_bits_and_wait_little_on_the_gpu_or_streamed(name, free, in_parts, small_blocks):
    expected, _ = finished(name, job.rows_of(table(), Ranks(), HOST))
    with Gpu(free=free) as gpu:
        rows = job.rows_of(table(), Ranks(), CUDA)
        assert rows.source.is_cuda == (free > 1000)
        assert rows.source.dtype == torch.float16
        found, waits = finished(name, rows, gpu)
    assert not gpu.faults
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    waits = [0, *waits] if name == "spectral" else waits  # which has one state
    assert min(after - before for before, after in pairwise(waits)) <= WAITS[name], waits


def test_no_pass_over_the_rows_waits(small_blocks):
    """Seeds, iterations, sums, codes: as many waits for one block as for ten."""
    waits = []
    for block in (64, 320):
        with Gpu() as gpu:
            x = cloud(n=320, k=12, dtype=torch.float32).half().to("cuda")
            rows = Rows.whole(x, dtype=torch.float32, block=block, device="cuda")
            KMeans(8, max_iter=3, tol=0).fit(rows).codes(rows)
            GaussianMixture(8, n_init=1, max_iter=3, tol=0).fit(rows).codes(rows)
        waits.append(sum(gpu.waits.values()))
    assert waits[0] == waits[1]


@pytest.mark.parametrize("kind", ["diag", "tied"])
def test_a_state_that_was_loaded_onto_the_gpu_goes_on_with_the_same_bits_and_waits(kind, in_parts, small_blocks):
    steady = ["codes.size=8", "codes.levels=1", "codes.n_init=1", "codes.max_iter=5", "codes.tol=0"]
    config = cfg.load([*FITS[kind], *steady]).codes
    with Gpu() as gpu:
        rows = job.rows_of(table(), Ranks(), CUDA)
        fit, again = (quantisers.build(config, 8, 0) for _ in range(2))
        states = list(fit.run(rows))
        run = again.run(rows, {name: value.to("cuda") for name, value in states[0].items()})
        next(run)
        before = sum(gpu.waits.values())
        next(run)
        assert sum(gpu.waits.values()) - before == WAITS[kind]
        rest = list(run)
        assert torch.equal(again.codes_, fit.codes_)
        assert all(torch.equal(rest[-1][name].cpu(), value.cpu()) for name, value in states[-1].items())
    assert not gpu.faults


def test_a_stream_yields_every_block_and_sends_it_from_pinned_memory():
    source = torch.arange(50.0).view(25, 2)
    places = [slice(low, min(low + 4, 25)) for low in range(0, 25, 4)]
    with Gpu() as gpu:
        for place, x in streamed(source, places, "cuda"):
            assert x.is_cuda
            assert torch.equal(x.cpu(), source[place])
        gpu.waits.clear()
        assert len(list(streamed(source, places, "cuda"))) == len(places)
        assert list(streamed(source[:0], [], "cuda")) == []
    assert not gpu.waits
    assert not gpu.faults


def test_rows_take_two_thirds_of_the_free_memory_and_worked_out_copies_half(small_blocks):
    x = table()
    for free, is_there in ((x.nbytes * 3 // 2, True), (x.nbytes * 3 // 2 - 2, False)):
        with Gpu(free=free):
            assert job.rows_of(x, Ranks(), CUDA).source.is_cuda == is_there
    wide = x.astype("float64")
    with Gpu(free=x.nbytes * 3):  # narrowed to what the rows are read in
        rows = job.rows_of(wide, Ranks(), CUDA)
        assert rows.source.is_cuda
        assert rows.source.dtype == torch.float32
    for free, is_kept in ((x.nbytes * 4, True), (x.nbytes * 4 - 2, False)):  # of float32, twice the table's
        with Gpu(free=free):
            rows = job.rows_of(x, Ranks(), CUDA)
            assert rows.held() is rows  # converting alone is not worth a copy
            less = rows.less(torch.zeros(1, 8, device="cuda"), torch.zeros(300, dtype=torch.int64, device="cuda"))
            assert (less.held() is not less) == is_kept


class Switches(TorchFunctionMode):
    """Notes the TF32 switch at every product of float32 matrices."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        products = ("mm", "addmm", "matmul", "__matmul__", "__rmatmul__", "cdist", "addmm_")
        if getattr(func, "__name__", "") in products and args[-1].dtype == torch.float32:
            self.seen.add(torch.backends.cuda.matmul.allow_tf32)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def tf32_everywhere():
    with tf32(True):
        yield


@pytest.mark.parametrize("name", ["diag", "spherical", "full", "kmeans", "balanced", "spectral"])
def test_float32_is_float32_whatever_the_process_allows(name, in_parts, small_blocks, tf32_everywhere):
    rows = job.rows_of(table(), Ranks(), HOST)
    with Switches() as switches:
        finished(name, rows)
    assert switches.seen == {False}
    assert torch.backends.cuda.matmul.allow_tf32


def test_tf32_is_allowed_where_it_is_asked_for_and_the_switch_returns_after_an_error(in_parts):
    x = torch.from_numpy(table()).float()
    with Switches() as switches:
        a, b = factor(x, "tf32"), factor(x[:5], "tf32")
        product(a, b, "tf32")
    assert switches.seen == {True}
    assert not torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        product(a, factor(x[:5, :3], "tf32"), "tf32")
    assert not torch.backends.cuda.matmul.allow_tf32
    with tf32(True), tf32(False):
        assert not torch.backends.cuda.matmul.allow_tf32


def one_iteration(x, start, precision="float32", dtype=torch.float32):
    model = GaussianMixture(len(start.weights), precision=precision, tol=0)
    fit = _Fit(model, Rows.whole(x, dtype=dtype, block=256))
    return fit.iterate(fit.begin(0, start), 1)


def start_of(x, k, scale=1.0):
    numbers = torch.arange(0, len(x), len(x) // k)[:k]
    variance = scale * x.double().var(0).expand(k, -1)
    return Parameters(torch.full((k,), 1 / k, dtype=torch.float64), x[numbers].double(), variance.contiguous())


def test_every_product_of_an_iteration_is_in_the_precision_that_was_asked_for(in_parts):
    x = cloud(n=500, k=12, dtype=torch.float32)
    for precision, is_allowed in (("float32", False), ("tf32", True)):
        with Switches() as switches:
            one_iteration(x, start_of(x, 4), precision)
        assert switches.seen == {is_allowed}


# means in standard deviations, variances by their share: rounding is random, so it shrinks with the rows of a component
@pytest.mark.parametrize(("precision", "limit"), [("float32", 1e-5), ("bf16x3", 1e-4), ("tf32", 3e-3)])
def test_the_error_of_an_iteration_in_each_precision(precision, limit, in_parts):
    x = cloud(n=4000, d=24, k=12, dtype=torch.float32)
    start = start_of(x, 16)
    exact = one_iteration(x, start, dtype=torch.float64)
    rounded = one_iteration(x, start, precision)
    deviation = exact["covariances"].sqrt()
    assert float(((rounded["means"] - exact["means"]) / deviation).abs().max()) < limit
    assert float((rounded["covariances"] / exact["covariances"] - 1).abs().max()) < limit
    assert float(rounded["lower_bound"]) == pytest.approx(float(exact["lower_bound"]), abs=limit)


def test_tf32_that_truncates_shrinks_a_variance_by_a_thousandth_at_most(in_parts, monkeypatch):
    """Hardware may cut the bits that TF32 lacks instead of rounding them."""

    def cut(x, precision):
        return ((x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32),) if x.dtype == torch.float32 else (x,)

    x = cloud(n=4000, d=24, k=12, dtype=torch.float32)
    start = start_of(x, 16)
    exact = one_iteration(x, start, dtype=torch.float64)
    monkeypatch.setattr(density, "factor", cut)
    rounded = one_iteration(x, start, "tf32")
    assert float((rounded["covariances"] / exact["covariances"] - 1).abs().max()) < 2e-2


def test_tight_components_are_exact_in_parts_and_in_pieces(in_parts, monkeypatch):
    x = torch.randn(3000, 40, generator=torch.Generator().manual_seed(0))
    x[:1000] = x[0] + 2
    start = start_of(x, 3)
    settings = {"tol": 0, "max_iter": 10}
    double = GaussianMixture(3, **settings).fit(Rows.whole(x, dtype=torch.float64), start)
    for size in (2**24, 80 * 100):
        monkeypatch.setattr(density, "_DOUBLE", size)
        single = GaussianMixture(3, **settings).fit(Rows.whole(x), start)
        assert single.lower_bound_ == pytest.approx(double.lower_bound_, abs=1e-3)
        assert float(single.covariances_.min()) < 1e-5
        torch.testing.assert_close(single.covariances_, double.covariances_, atol=1e-6, rtol=1e-4)


def test_both_forms_of_the_products_find_the_same_parameters(monkeypatch):
    x = cloud(n=900, d=12, k=9, dtype=torch.float32)
    for kind in ("diag", "spherical", "tied", "full"):
        fits = []
        for parts in (False, True):
            monkeypatch.setattr(density, "in_parts", lambda _, parts=parts: parts)
            model = GaussianMixture(4, covariance_type=kind, n_init=1, max_iter=5, tol=0)
            fits.append(model.fit(Rows.whole(x, block=200)))
        torch.testing.assert_close(fits[0].means_, fits[1].means_, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(fits[0].covariances_, fits[1].covariances_, atol=1e-3, rtol=1e-3)
        assert fits[0].lower_bound_ == pytest.approx(fits[1].lower_bound_, abs=1e-4)


def test_empty_clusters_move_on_the_gpu_as_on_the_cpu():
    x = torch.from_numpy(table()).float()
    means = torch.cat([x[::100], torch.full((3, 8), 1e3)]).double()
    host = Rows.whole(x, block=64)
    expected, inertia = lloyd(host, means, largest(host), 0.0)
    with Gpu() as gpu:
        there = Rows.whole(x.to("cuda"), block=64, device="cuda")
        found, same = lloyd(there, means.to("cuda"), largest(there), 0.0)
        assert torch.equal(found.cpu(), expected)
    assert same == inertia
    assert not gpu.faults


def test_the_benchmark_of_an_iteration_on_a_gpu_runs_to_its_end_at_small_size(capsys, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "bench")
    import gmm

    with Gpu() as gpu:
        gmm.main(["--cuda", "--small"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["P4"] == figures["P4_float32"]
    assert {"P4_tf32", "P4_bf16x3", "P4_host", "card", "nats_float32"} <= figures.keys()
    assert not gpu.faults
