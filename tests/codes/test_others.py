"""Balanced k-means, spectral clustering and the RQ-VAE, each against an oracle."""

import numpy as np
import pytest
import torch
from clouds import cloud, whole
from ranks import run_on
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse.linalg import ArpackNoConvergence
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score

from distrec.codes import spectral as spectral_file
from distrec.codes.balanced import BalancedKMeans, deal, equal_shares
from distrec.codes.kmeans import Means
from distrec.codes.rows import Rows, largest, share
from distrec.codes.rqvae import RqVae, latents
from distrec.codes.spectral import Neighbours, Spectral, leading
from distrec.runtime import Ranks


def shared(x, block=64):
    """This rank's rows of x."""
    ranks = Ranks.here()
    own = share(len(x), ranks.rank, ranks.size, block)
    return Rows(source=x[own], total=len(x), first=own.start, sum_=ranks.sum_, block=block, dtype=x.dtype)


@pytest.mark.parametrize(("n", "k"), [(600, 8), (605, 8), (97, 32), (40, 40), (50, 1)])
def test_balanced_sizes_differ_by_at_most_one(n, k):
    x = cloud(n=n, d=5, k=4, dtype=torch.float32)
    x[: n // 2] = x[0]  # half of the rows are the same
    fitted = BalancedKMeans(k)
    for state in fitted.run(whole(x)):
        fitted.adopt(state)
    sizes = torch.bincount(fitted.labels_, minlength=k)
    assert int(sizes.max()) - int(sizes.min()) <= 1
    assert int(sizes.sum()) == n


def test_the_balanced_assignment_is_nearly_the_best_there_is():
    x = cloud(n=480, d=6, k=5)
    means = x[torch.randperm(480, generator=torch.Generator().manual_seed(1))[:12]]
    near, bound = Means(means, whole(x)), largest(whole(x))
    prices = equal_shares(whole(x), near, torch.zeros(12, dtype=torch.float64), 60, bound)
    labels, cost = deal(whole(x), near, prices, bound)
    square = torch.cdist(x, means).square().repeat_interleave(40, 1)
    best = square[linear_sum_assignment(square.numpy())].sum()
    assert cost == pytest.approx(float(torch.cdist(x, means).square()[torch.arange(480), labels.long()].sum()))
    assert float(best) <= cost < 1.02 * float(best)


def test_balanced_goes_on_bit_for_bit_and_ranks_do_not_change_a_label():
    x = cloud(n=500, d=6, k=9, dtype=torch.float32)
    states = list(BalancedKMeans(10).run(whole(x, block=64)))
    assert np.diff([float(state["inertia"]) for state in states if not state["done"]]).max(initial=0) <= 0
    resumed = list(BalancedKMeans(10).run(whole(x, block=64), states[1]))
    assert torch.equal(resumed[-1]["labels"], states[-1]["labels"])
    for labels in run_on(3, lambda: list(BalancedKMeans(10).run(shared(x)))[-1]["labels"].tolist()):
        assert labels == states[-1]["labels"].tolist()


def rings(n=600, dtype=torch.float32):
    """Two rings around each other, which no k-means separates, and a far cluster."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, n)
    label = rng.integers(3, size=n)
    radius = np.array([1.0, 4.0, 0.3])[label]
    x = np.stack([radius * np.cos(angle) + 9 * (label == 2), radius * np.sin(angle)], 1)
    return torch.from_numpy(x + 0.05 * rng.standard_normal((n, 2))).to(dtype), label


def spectral(rows, k, **settings):
    fitted = Spectral(k, **settings)
    for state in fitted.run(rows):
        fitted.adopt(state)
    return fitted


def test_spectral_clustering_separates_rings_as_scikit_learn_does():
    x, label = rings()
    ours = spectral(whole(x), 3)
    theirs = SpectralClustering(3, affinity="nearest_neighbors", random_state=0).fit_predict(x.numpy())
    assert adjusted_rand_score(label, theirs) > 0.99
    assert adjusted_rand_score(label, ours.labels_) > 0.99


def test_eigenvectors_are_those_of_the_dense_affinity():
    x = cloud(n=200, d=4, k=3)
    affinity, root = Neighbours(x, 10).normalised_affinity()
    dense = np.linalg.eigvalsh(affinity.toarray())
    assert abs(affinity - affinity.T).max() < 1e-15
    np.testing.assert_allclose(spectral(whole(x), 5).eigenvalues_, dense[::-1][:5], atol=1e-6)
    np.testing.assert_allclose(affinity @ root, root, atol=1e-12)


def test_affinities_and_what_lies_beyond_the_landmarks_are_those_of_the_formulas():
    x, beyond = cloud(n=60, d=3, k=1), cloud(n=5, d=3, k=1, seed=1)
    marks, k = Neighbours(x, 5), 5
    distance = torch.cdist(x, x).fill_diagonal_(torch.inf)
    order = distance.argsort(1)[:, :k]
    scale = distance.gather(1, order)[:, -1]
    torch.testing.assert_close(marks.scale, scale)
    affinity = torch.exp(-distance.square() / (scale[:, None] * scale))
    is_near = torch.zeros(60, 60, dtype=torch.bool).scatter_(1, order, True)
    affinity = torch.where(is_near | is_near.T, affinity, 0)
    root = affinity.sum(1).sqrt()
    found, found_root = marks.normalised_affinity()
    np.testing.assert_allclose(found.toarray(), affinity / (root[:, None] * root), atol=1e-9)
    np.testing.assert_allclose(found_root, root, atol=1e-9)
    embedding = torch.nn.functional.normalize(torch.randn(60, 4, dtype=torch.float64), dim=1)
    near = torch.cdist(beyond, x).topk(k, dim=1, largest=False)
    weight = torch.exp(-near.values.square() / (near.values[:, -1:] * scale[near.indices]))
    wanted = (weight[:, :, None] * embedding[near.indices]).sum(1)
    torch.testing.assert_close(marks.extend(beyond, embedding), wanted / wanted.norm(dim=1, keepdim=True))


def test_eigenvectors_of_a_graph_in_many_parts():
    x = torch.cat([cloud(n=30, d=3, k=1, seed=i) + 1000 * i for i in range(12)])
    affinity, root = Neighbours(x, 5).normalised_affinity()
    dense = np.linalg.eigvalsh(affinity.toarray())[::-1]
    for k in (5, 12, 20):
        values, vectors = leading(affinity, root, k, 0)
        np.testing.assert_allclose(values, dense[:k], atol=1e-6)
        np.testing.assert_allclose(affinity @ vectors, vectors * values, atol=1e-5)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(k), atol=1e-6)


def test_of_more_parts_than_clusters_the_largest_have_the_eigenvectors():
    sizes, root = (2, 5, 3, 4), np.sqrt(np.random.default_rng(0).uniform(1, 2, 14))
    part = np.repeat(np.arange(4), sizes)
    affinity = sparse.csr_array((part[:, None] == part) * np.outer(root, root) / (np.bincount(part, root**2)[part]))
    for k, kept in ((2, (1, 3)), (3, (1, 3, 2)), (4, (1, 3, 2, 0))):
        values, vectors = leading(affinity, root, k, 0)
        np.testing.assert_allclose(values, 1)
        wanted = np.stack([np.where(part == one, root, 0) for one in kept], 1)
        np.testing.assert_allclose(vectors, wanted / np.linalg.norm(wanted, axis=0), atol=1e-9)


def test_nystroem_labels_the_rows_beyond_the_landmarks():
    x, label = rings(3000)
    assert adjusted_rand_score(label, spectral(whole(x), 3, landmarks=900).labels_) > 0.99


def test_spectral_on_ranks_and_on_equal_rows():
    x, _ = rings(400)
    alone = spectral(whole(x, block=64), 3, landmarks=200)
    for labels in run_on(2, lambda: spectral(shared(x), 3, landmarks=200).labels_.tolist()):
        assert labels == alone.labels_.tolist()
    same = torch.ones(300, 4)
    same[200:] = cloud(n=100, d=4, dtype=torch.float32)
    assert torch.isfinite(spectral(whole(same), 5).cluster_centers_).all()
    with pytest.raises(ValueError, match="needs more rows than clusters"):
        spectral(whole(torch.ones(5, 2)), 5)


def small_rqvae(**settings):
    return RqVae(2, 16, **{"hidden": (32,), "latent": 8, "epochs": 12, "batch": 128, **settings})


def drained(model, rows, state=None):
    return list(model.run(rows, state))


def test_the_rqvae_learns_to_reconstruct_and_uses_its_codes():
    x = cloud(n=1000, d=12, k=16, dtype=torch.float32)
    model = small_rqvae(epochs=40)
    states = drained(model, whole(x))
    assert float(states[-1]["loss"]) < 0.6 * float(states[0]["loss"])
    assert model.reports_[-1]["reconstruction"] < 0.5
    assert len(model.codes_[:, 0].unique()) > 8
    left = latents(model.model_, whole(x)).source
    for number, level in enumerate(model.levels_):
        code = torch.cdist(left, level.codebook.float()).argmin(1)
        assert (code == model.codes_[:, number]).double().mean() > 0.999
        left = left - level.codebook.float()[code]


def test_the_commitment_pulls_the_encoder_alone_and_the_codebook_goes_to_its_rows():
    x = cloud(n=40, d=6, dtype=torch.float32)
    model = RqVae(1, 4, hidden=(), latent=3)._start(whole(x))
    with torch.no_grad():
        model.codebooks += 0.1 * torch.randn(model.codebooks.shape)

    def gradients(commitment):
        loss, codes = model(x, commitment, 0.0)
        found = torch.autograd.grad(loss, [model.codebooks, *model.encoder.parameters(), *model.decoder.parameters()])
        return float(loss.detach()), codes, found

    latent, book = model.encode(x), model.codebooks[0]
    plain, codes, without = gradients(0.0)
    assert torch.equal(codes[:, 0], torch.cdist(latent, book).argmin(1))
    word = book[codes[:, 0]]
    own = torch.zeros_like(book).index_add_(0, codes[:, 0], 2 * (word - latent).detach())
    torch.testing.assert_close(without[0][0], own)
    lost = ((x - model.centre) * model.scale - model.decoder(word)).square().sum()
    assert plain == pytest.approx(float((lost + (latent - word).square().sum()).detach()), rel=1e-5)
    more, _, with_it = gradients(0.5)
    assert more - plain == pytest.approx(0.5 * float((latent - word).detach().square().sum()), rel=1e-4)
    pull = torch.autograd.grad(
        0.5 * (latent - word.detach()).square().sum(), list(model.encoder.parameters()), retain_graph=True
    )
    for one, two, wanted in zip(with_it[1:], without[1:], (*pull, 0, 0), strict=True):
        torch.testing.assert_close(one - two, wanted + torch.zeros_like(one), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(with_it[0], without[0])
    straight = torch.autograd.grad(((x - model.centre) * model.scale - model.decoder(latent + (word - latent).detach())).square().sum(), list(model.encoder.parameters()))  # fmt: skip
    for one, wanted in zip(without[1:], straight, strict=False):
        torch.testing.assert_close(one, wanted, atol=1e-4, rtol=1e-4)


def test_rows_reach_the_encoder_centred_with_unit_mean_energy_and_reports_are_shares_of_it():
    x = 7 * cloud(n=300, d=6, dtype=torch.float32) + 20
    model = small_rqvae(epochs=2)
    drained(model, whole(x))
    own = model.model_
    scaled = (x - own.centre) * own.scale
    assert float(scaled.square().sum(1).mean()) == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(own.centre, x.mean(0))
    first, second = model.reports_
    assert second["residual_before"] == first["residual"]
    assert second["residual_share"] == pytest.approx(second["residual"] / first["residual_before"])
    words = sum(own.codebooks[i][model.codes_[:, i].long()] for i in range(2))
    lost = float((scaled - own.decoder(words)).square().sum(1).mean().detach())
    assert first["reconstruction"] == pytest.approx(lost, rel=1e-4)


def test_both_halves_are_linear_maps_with_a_relu_between_them_and_none_at_the_end():
    model, x = RqVae(1, 4, hidden=(5, 3), latent=2).build(6), torch.randn(7, 6)
    for half, values, widths in ((model.encoder, x, (5, 3, 2)), (model.decoder, x[:, :2], (3, 5, 6))):
        wanted = values
        for i, width in enumerate(widths):
            weight, bias = half[2 * i].weight, half[2 * i].bias
            wanted = wanted.clamp(min=0) @ weight.T + bias if i else wanted @ weight.T + bias
            assert wanted.shape[1] == width
        torch.testing.assert_close(half(values), wanted)


def test_every_epoch_reads_every_row_once_in_an_order_of_its_own(monkeypatch):
    x, read = cloud(n=50, d=4, dtype=torch.float32), []
    real = Rows.read
    monkeypatch.setattr(Rows, "read", lambda self, place: (isinstance(place, torch.Tensor) and read.append(place), real(self, place))[1])  # fmt: skip
    model = small_rqvae(epochs=3, batch=16)
    started = model._start(whole(x))
    optimiser = torch.optim.Adam(started.parameters())
    orders = []
    for number in range(3):
        read.clear()
        monkeypatch.setattr(RqVae, "_revive", lambda *_: None)
        model._epoch(whole(x), started, optimiser, number)
        assert [len(batch) for batch in read] == [16, 16, 16, 2]
        orders.append(torch.cat(read).tolist())
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_the_rqvae_goes_on_bit_for_bit():
    x = cloud(n=500, d=10, dtype=torch.float32)
    model = small_rqvae(usage=0.1)
    states = drained(model, whole(x))
    for cut in (0, 5, 11):
        again = small_rqvae(usage=0.1)
        rest = drained(again, whole(x), states[cut])
        assert len(rest) == 11 - cut
        assert torch.equal(again.codes_, model.codes_)
        for name, value in model.model_.state_dict().items():
            assert torch.equal(again.model_.state_dict()[name], value), name


def test_the_rqvae_on_ranks_learns_the_same():
    x = cloud(n=600, d=10, dtype=torch.float32)
    alone = small_rqvae(epochs=3)
    drained(alone, whole(x, block=64))

    def fit():
        model = small_rqvae(epochs=3)
        drained(model, shared(x))
        return model.model_.codebooks.detach().numpy(), model.codes_.numpy()

    answers = run_on(2, fit)
    for books, codes in answers:
        np.testing.assert_allclose(books, alone.model_.codebooks.detach(), atol=1e-4)
        assert (codes == alone.codes_.numpy()).mean() > 0.98
    np.testing.assert_array_equal(answers[0][1], answers[1][1])


def test_the_rqvae_does_not_touch_the_global_random_state():
    before = torch.random.get_rng_state()
    drained(small_rqvae(epochs=1), whole(cloud(n=200, d=6, dtype=torch.float32)))
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_usage_loss_evens_out_the_codes():
    x = cloud(n=1000, d=12, k=3, dtype=torch.float32)
    entropy = []
    for usage in (0.0, 0.1):
        model = small_rqvae(epochs=15, usage=usage)
        drained(model, whole(x))
        share = torch.bincount(model.codes_[:, 0].long(), minlength=16).double() / 1000
        entropy.append(float(-(share[share > 0] * share[share > 0].log()).sum()))
    assert entropy[1] > entropy[0] + 0.2


def test_the_usage_loss_is_the_same_on_ranks_even_on_an_empty_one():
    x = cloud(n=100, d=8, dtype=torch.float32)
    alone = small_rqvae(epochs=2, usage=0.5)
    drained(alone, whole(x, block=128))

    def fit():
        model = small_rqvae(epochs=2, usage=0.5)
        drained(model, shared(x, 128))
        return model.model_.codebooks.detach().numpy()

    for books in run_on(2, fit):
        np.testing.assert_allclose(books, alone.model_.codebooks.detach(), atol=1e-5)


def test_codes_that_no_row_took_are_revived():
    x = cloud(n=400, d=6, dtype=torch.float32)
    model = small_rqvae(epochs=2)
    start = model._start(whole(x))
    start.codebooks.data[0, 3:9] = 1e4
    used = torch.ones(2, 16, dtype=torch.int64)
    used[0, 3:9] = 0
    model._revive(whole(x), start, used, np.random.default_rng(0))
    assert float(start.codebooks.detach().abs().max()) < 100
    spread_out = torch.cdist(start.codebooks[0, 3:9], latents(start, whole(x)).source).amin(1)
    torch.testing.assert_close(spread_out, torch.zeros(6), atol=1e-3, rtol=0)


def test_a_code_of_a_later_level_is_revived_at_a_residual():
    x = cloud(n=100, d=5, dtype=torch.float32)
    model = small_rqvae()
    start = model._start(whole(x))
    used = torch.ones(2, 16, dtype=torch.int64)
    used[1, 4] = 0
    before = start.codebooks.detach().clone()
    model._revive(whole(x), start, used, np.random.default_rng(0))
    latent = latents(start, whole(x)).source
    residual = latent - before[0][torch.cdist(latent, before[0]).argmin(1)]
    assert float(torch.cdist(start.codebooks[1, 4:5], residual).amin()) < 1e-5
    start.codebooks.data[1, 4] = before[1, 4]
    assert torch.equal(start.codebooks, before)  # no other moved


def test_dealing_equal_rows_takes_few_passes():
    x = torch.ones(2000, 4)
    x[:200] = cloud(n=200, d=4, dtype=torch.float32)
    near = Means(x[:250].clone(), whole(x))
    labels, _ = deal(whole(x), near, torch.zeros(250, dtype=torch.float64), largest(whole(x)))
    assert torch.bincount(labels, minlength=250).tolist() == [8] * 250


def test_few_distinct_rows_are_no_crash_for_spectral_clustering():
    x = cloud(n=8, d=4, dtype=torch.float32).repeat_interleave(20, 0)
    labels = spectral(whole(x), 10).labels_
    assert torch.equal(labels, labels[::20].repeat_interleave(20))
    assert len(labels.unique()) == 8


def test_where_lanczos_finds_nothing_a_small_affinity_is_decomposed_whole(monkeypatch):
    affinity, root = Neighbours(cloud(n=60, d=4, dtype=torch.float32), 6).normalised_affinity()
    values, vectors = leading(affinity, root, 5, 0)

    def fail(*_, **__):
        raise ArpackNoConvergence("none", np.empty(0), np.empty((60, 0)))

    monkeypatch.setattr(spectral_file, "eigsh", fail)
    again, dense = leading(affinity, root, 5, 0)
    np.testing.assert_allclose(again, values, atol=1e-10)
    np.testing.assert_allclose(np.abs((vectors * dense).sum(0)), 1, atol=1e-6)
    monkeypatch.setattr(spectral_file, "_DENSE", 59)
    with pytest.raises(ArpackNoConvergence):
        leading(affinity, root, 5, 0)
