"""Quantizers and filters on the pretended GPU: the CPU's bits, few host waits."""

import pytest
import torch
from decoders import saved
from pretended import GPU
from pretending import counts, limits
from scipy import sparse

from distrec import knobs
from distrec.codes.rows import Rows
from distrec.freq import butterworth, graph, polynomial
from distrec.models import quantisers
from distrec.models.backbone import Backbone
from distrec.models.language.pretrained import open_decoder

FITS = {
    "gmm": ["codes.name=gmm", "codes.n_init=1", "codes.max_iter=4", "codes.levels=2"],
    "gmm tf32": ["codes.name=gmm", "codes.n_init=1", "codes.max_iter=4", "codes.precision=tf32"],
    "gmm bf16x3": ["codes.name=gmm", "codes.n_init=1", "codes.max_iter=4", "codes.precision=bf16x3"],
    "gmm spherical": ["codes.name=gmm", "codes.n_init=1", "codes.max_iter=4", "codes.covariance=spherical"],
    "gmm tied": ["codes.name=gmm", "codes.n_init=1", "codes.max_iter=4", "codes.covariance=tied"],
    "gmm full": ["codes.name=gmm", "codes.n_init=1", "codes.max_iter=6", "codes.covariance=full", "codes.assignment=posterior"],
    "kmeans": ["codes.name=kmeans", "codes.levels=2"],
    "balanced": ["codes.name=balanced", "codes.max_iter=2"],
    "spectral": ["codes.name=spectral", "codes.neighbours=5"],
    "spectral landmarks": ["codes.name=spectral", "codes.neighbours=5", "codes.landmarks=60"],
    "rqvae": ["codes.name=rqvae", "codes.hidden=[16]", "codes.latent=4", "codes.epochs=4", "codes.batch=64"],
}  # fmt: skip


@pytest.mark.parametrize("name", FITS)
def test_a_fit_gives_the_cpu_s_codes_and_its_iterations_wait_rarely(monkeypatch, name):
    here = counts.fit(FITS[name], "cpu")
    with counts.device(monkeypatch) as gpu:
        there, finer = counts.fit(FITS[name]), counts.fit(FITS[name], block=32)
        tensors = quantisers.tensors_of(there.fit)
        again = quantisers.codes_of(there.rows, tensors, there.config)
        assert not gpu.faults, gpu.faults
        assert all(not tensor.is_cuda for tensor in tensors.values())
        if name in limits.ITERATION:
            waits = counts.iteration(there.counts)
            assert (waits, (counts.iteration(finer.counts) - waits) / 4) == limits.ITERATION[name], gpu.waits
        else:
            assert "spectral" in name  # which has no iterations of its own
        same = torch.equal(here.fit.codes_, there.fit.codes_.cpu())
        if name != "gmm tf32":  # rounded by the tensor cores there, on the host here
            assert same
        assert torch.equal(again.cpu(), there.fit.codes_.cpu()) or name in (
            "balanced",
            "spectral",
            "spectral landmarks",
        )


@pytest.mark.parametrize("name", ["gmm", "rqvae"])
def test_a_fit_that_was_stopped_goes_on_to_the_same_bits(monkeypatch, name):
    with counts.device(monkeypatch) as gpu:
        whole = counts.fit(FITS[name])
        fit = quantisers.build(whole.config, 8, 0)
        states = fit.run(whole.rows)
        state = [next(states) for _ in range(3)][-1]
        kept = {key: value.cpu().clone() for key, value in state.items()}
        fit = quantisers.build(whole.config, 8, 0)
        for _ in fit.run(whole.rows, {key: value.to(GPU) for key, value in kept.items()}):
            pass
        assert not gpu.faults, gpu.faults
        assert torch.equal(fit.codes_, whole.fit.codes_)


def test_rows_of_the_host_are_sent_block_by_block(monkeypatch):
    """What does not fit into the device's memory stays on the host."""
    with counts.device(monkeypatch) as gpu:
        table = counts.cloud(256, d=8, dtype=torch.float32)
        rows = Rows.whole(table, dtype=torch.float32, block=64, device=GPU, memory=0)
        assert all(block.is_cuda for _, block in rows.blocks())
        config = counts.fit(FITS["kmeans"]).config
        for _ in (fit := quantisers.build(config, 8, 0)).run(rows):
            pass
        assert not gpu.faults, gpu.faults
        assert torch.equal(fit.codes_.cpu(), counts.fit(FITS["kmeans"]).fit.codes_.cpu())


def segments(n=4, longest=9):
    segment = torch.zeros(n, longest, dtype=torch.long)
    for row in range(n):
        segment[row, 2 * row :] = 1
    return segment


@pytest.mark.parametrize("boundary", ["reflect", "circular", "paper", "causal"])
def test_filters_of_sequences_are_the_cpu_s(monkeypatch, boundary):
    here = butterworth.matrices(segments(), 0.3, 2, boundary)
    with counts.device(monkeypatch) as gpu:
        there = butterworth.matrices(segments().to(GPU), 0.3, 2, boundary)
        assert there.is_cuda
        assert torch.equal(there.cpu(), here)
        assert not gpu.faults, gpu.faults


def test_filters_of_graphs_are_the_cpu_s(monkeypatch):
    edges = sparse.random_array((60, 60), density=0.1, rng=0, dtype="float32").tocsr()
    adjacency = graph.normalise(sparse.csr_array(edges + edges.T))
    x = torch.randn(60, 5)
    here = polynomial.low_pass(adjacency, x, 0.7, 2), graph.neighbours(x, 3)
    with counts.device(monkeypatch) as gpu:
        there = polynomial.low_pass(adjacency, x.to(GPU), 0.7, 2), graph.neighbours(x.to(GPU), 3)
        torch.testing.assert_close(there[0].cpu(), here[0])
        assert (there[1] != here[1]).nnz == 0
        assert not gpu.faults, gpu.faults


@pytest.mark.parametrize("mode", ["causal", "global"])
def test_hooks_filter_as_on_the_cpu(monkeypatch, tmp_path, mode):
    backbone = Backbone(knobs.Backbone(), knobs.Filter(mode=mode), open_decoder(saved(tmp_path, layers=2)))
    x = torch.randn(4, 9, backbone.width)
    here = backbone(x, segments())
    with counts.device(monkeypatch) as gpu:
        moved = x.to(GPU).requires_grad_()
        there = backbone.to(GPU)(moved, segments().to(GPU))
        there.square().sum().backward()
        assert moved.grad.isfinite().all()
        torch.testing.assert_close(there.detach().cpu(), here.detach())
        assert not gpu.faults, gpu.faults
