"""k-means against scikit-learn and brute force; seeding; degenerate tables; ranks."""

import numpy as np
import pytest
import torch
from clouds import cloud, whole
from ranks import run_on
from sklearn.cluster import KMeans as Reference

from distrec.codes.kmeans import (
    KMeans,
    Labelled,
    Means,
    _draw,
    _prune,
    cluster_means,
    lloyd,
    nearest,
    random_rows,
    seeds,
)
from distrec.codes.rows import ExactSum, Rows, largest, share
from distrec.runtime import Ranks


def inertia(x, means):
    return float(torch.cdist(x.double(), means.double()).amin(1).square().sum())


def test_lloyd_is_scikit_learns_from_the_same_start():
    x = cloud(n=2000, d=8)
    start = x[:30].clone()
    theirs = Reference(30, init=start.numpy(), n_init=1, algorithm="lloyd", max_iter=5, tol=0).fit(x.numpy())
    rows, means = whole(x, block=300), start
    for _ in range(theirs.n_iter_):
        means, _ = lloyd(rows, means, largest(rows), 0.0)
    np.testing.assert_allclose(means, theirs.cluster_centers_, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_fit_ends_no_worse_than_scikit_learns(seed):
    x = cloud(n=4000, d=16, k=60, seed=seed, dtype=torch.float32)
    ours = KMeans(64, seed=seed).fit(whole(x))
    theirs = Reference(64, n_init=1, random_state=seed).fit(x.numpy())
    assert ours.inertia_ < 1.01 * theirs.inertia_
    assert ours.inertia_ == pytest.approx(inertia(x, ours.cluster_centers_), rel=0.01)


def test_inertia_never_rises_and_codes_are_the_nearest_means():
    x = cloud(n=1000, d=5, dtype=torch.float32)
    states = list(KMeans(20, init="random", tol=0, max_iter=30).run(whole(x, block=128)))
    assert np.diff([float(state["inertia"]) for state in states]).max() < 1e-3
    means = states[-1]["means"]
    torch.testing.assert_close(nearest(whole(x, block=128), means), torch.cdist(x.double(), means).argmin(1))


def test_seeds_beat_random_rows():
    x = cloud(n=3000, d=8, k=50, seed=1)
    rows = whole(x)
    drawn = np.mean([inertia(x, random_rows(rows, 50, s)) for s in range(5)])
    assert np.mean([inertia(x, seeds(rows, 50, s)) for s in range(5)]) < 0.6 * drawn


@pytest.mark.parametrize("init", ["k-means||", "random"])
def test_ranks_do_not_change_a_bit(init):
    x = cloud(n=700, d=6, dtype=torch.float32)

    def fit():
        ranks = Ranks.here()
        own = share(len(x), ranks.rank, ranks.size, 64)
        rows = Rows(source=x[own], total=len(x), first=own.start, sum_=ranks.sum_, block=64)
        fitted = KMeans(12, init=init).fit(rows)
        return (
            fitted.cluster_centers_.numpy(),
            fitted.inertia_,
            rows.together(nearest(rows, fitted.cluster_centers_)).numpy(),
        )

    alone = KMeans(12, init=init).fit(whole(x, block=64))
    for means, value, codes in run_on(3, fit):
        np.testing.assert_array_equal(means, alone.cluster_centers_)
        assert value == alone.inertia_
        np.testing.assert_array_equal(codes, nearest(whole(x, block=64), alone.cluster_centers_))


def test_a_rank_may_hold_nothing():
    x = cloud(n=40, dtype=torch.float32)

    def fit():
        ranks = Ranks.here()
        own = share(len(x), ranks.rank, ranks.size, 64)
        rows = Rows(source=x[own], total=len(x), first=own.start, sum_=ranks.sum_, block=64)
        return KMeans(4).fit(rows).inertia_

    assert run_on(2, fit) == [KMeans(4).fit(whole(x, block=64)).inertia_] * 2


@pytest.mark.parametrize("n", [1, 3, 40])
def test_fewer_distinct_rows_than_clusters(n):
    x = cloud(n=n, d=4, dtype=torch.float32).repeat(20, 1)
    fitted = KMeans(min(10, len(x))).fit(whole(x))
    assert torch.isfinite(fitted.cluster_centers_).all()
    if n < 10:
        assert fitted.inertia_ == pytest.approx(0, abs=1e-3)


def test_empty_clusters_move_to_the_worst_rows():
    x = cloud(n=500, d=4)
    start = x[:8].clone()
    start[3:6] = 1e5
    means, _ = lloyd(whole(x), start, largest(whole(x)), 0.0)
    assert float(means.abs().max()) < 100
    far = torch.cdist(x, start).amin(1).topk(3).indices
    torch.testing.assert_close(means[3:6], x[far])


def test_exact_sums_do_not_depend_on_order():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1000, 3, generator=generator, dtype=torch.float64) * 10.0 ** torch.randint(
        -6, 1, (1000, 1), generator=generator
    )
    sums = []
    for _ in range(3):
        total = ExactSum((3,), 8.0 * 1000)
        for row in values[torch.randperm(1000, generator=generator)]:
            total.add(row)
        sums.append(total.over(lambda *_: None))
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])
    torch.testing.assert_close(sums[0], values.sum(0), atol=1e-12, rtol=0)


def test_rows_subtract_what_earlier_levels_took():
    x = cloud(n=100, d=6)
    centre, rotation = x.mean(0), torch.linalg.qr(torch.randn(6, 4, dtype=torch.float64))[0]
    books = [torch.randn(5, 4, dtype=torch.float64) for _ in range(2)]
    codes = [torch.randint(5, (100,)) for _ in range(2)]
    rows = whole(x, centre=centre, rotation=rotation, block=32).less(books[0], codes[0]).less(books[1], codes[1])
    expected = (x - centre) @ rotation - books[0][codes[0]] - books[1][codes[1]]
    torch.testing.assert_close(torch.cat([part for _, part in rows.blocks()]), expected)
    torch.testing.assert_close(rows.held().source, expected)
    torch.testing.assert_close(rows.at(torch.tensor([99, 0, 50])), expected[[99, 0, 50]])


def test_the_best_rows_are_found_across_blocks():
    x = torch.arange(100.0)[:, None] * torch.ones(1, 2)
    numbers, keys = whole(x, block=16).best(lambda _, part: part[:, 0] % 10, 10)
    assert set(numbers.tolist()) == set(range(9, 100, 10))
    assert keys.tolist() == [9.0] * 10


def test_a_seed_is_drawn_with_probability_proportional_to_its_squared_distance():
    """Beside a first seed at 0, the row at 3 is drawn nine times as often as the row at 1."""
    rows = whole(torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64))
    drawn = [_draw(rows, 2, seed)[:, 0].tolist() for seed in range(600)]
    second = [pair[1] for pair in drawn if pair[0] == 0]
    assert len(second) > 150
    assert {*second} == {1.0, 3.0}
    assert 0.84 < second.count(3.0) / len(second) < 0.96


def test_seeds_are_drawn_towards_what_is_far():
    """One far group of ten rows in a thousand is always found; uniform draws would often miss it."""
    x = cloud(n=1000, d=4, k=1, dtype=torch.float32)
    x[:10] += 200
    for seed in range(5):
        means = _draw(whole(x), 4, seed)
        assert bool((means.mean(1) > 100).any())


def test_a_fit_stops_at_the_first_fall_below_its_tolerance_or_at_its_last_iteration():
    x = cloud(n=800, d=6, k=20)
    for tol in (0.0, 1e-3, 0.05):
        values = [float(state["inertia"]) for state in KMeans(15, init="random", tol=tol).run(whole(x))]
        falls = [after < before * (1 - tol) for before, after in zip([float("inf"), *values], values, strict=False)]
        assert falls == [True] * (len(values) - 1) + [False]
    states = list(KMeans(15, init="random", tol=0, max_iter=3).run(whole(x)))
    assert [(int(state["n_iter"]), bool(state["done"])) for state in states] == [(1, False), (2, False), (3, True)]
    assert not list(KMeans(15, max_iter=0).run(whole(x)))


def test_random_rows_are_those_of_the_seed_and_no_row_twice():
    x = torch.arange(50.0)[:, None]
    one, same, other = (random_rows(whole(x), 20, seed)[:, 0].tolist() for seed in (1, 1, 2))
    assert one == same != other
    assert len(set(one)) == 20


def test_the_seeds_that_stay_are_those_whose_loss_would_cost_most():
    """One of four candidates stands beside another: one of these two goes, and means are those of their rows."""
    groups = torch.tensor([[0.0, 0.0], [40.0, 0.0], [0.0, 40.0]])
    x = (groups[:, None] + 0.01 * torch.randn(3, 30, 2, generator=torch.Generator().manual_seed(0))).reshape(-1, 2)
    for twin in groups:
        found = _prune(whole(x), torch.cat([groups, twin[None] + 0.001]), 1, largest(whole(x)))
        assert len(found) == 3
        assert float(torch.cdist(found.float(), groups).amin(0).max()) < 1


def test_two_rounds_of_a_draw_do_not_race_with_the_same_numbers():
    """A row that lost by its number in one round has another in the next: drawn rows are not the same few for all."""
    x = torch.eye(200)
    rounds = []
    real = Rows.random
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rows, "random", lambda self, place, *seed: (rounds.append(seed), real(self, place, *seed))[1])
        _draw(whole(x), 41, 7)
    assert rounds == [(7, r) for r in range(5)]


def test_means_of_clusters_are_over_the_rows_of_their_labels_and_labels_are_the_table_s():
    x, labels = cloud(n=100, d=3), torch.randint(4, (100,), generator=torch.Generator().manual_seed(0))
    labels[labels == 2] = 1  # nobody's
    wanted = torch.stack([x[labels == k].mean(0) if k != 2 else torch.zeros(3).double() for k in range(4)])
    rows = whole(x, block=32)
    torch.testing.assert_close(cluster_means(rows, labels, 4, largest(rows)), wanted)
    part = Rows(source=x[64:], total=100, first=64, block=32, dtype=x.dtype)
    own = torch.stack([x[64:][labels[64:] == k].mean(0) if k != 2 else torch.zeros(3).double() for k in range(4)])
    torch.testing.assert_close(cluster_means(part, labels, 4, largest(rows)), own)
    fitted = Labelled()
    fitted.labels_, fitted.cluster_centers_ = labels, wanted
    assert torch.equal(fitted.codes(part), labels[64:])
    assert torch.equal(fitted.codes(whole(x[:9])), nearest(whole(x[:9]), wanted))


def test_a_row_that_is_a_mean_has_no_distance_to_it_and_others_have_their_own():
    x = cloud(n=200, d=6, dtype=torch.float32) + 3
    near = Means(x[:40].double(), whole(x))
    found = near.distance(x)
    assert found[:40].tolist() == [0] * 40  # where rounding alone would leave some
    exact = torch.cdist(x.double(), x[:40].double()).amin(1).square()
    torch.testing.assert_close(found[40:].double(), exact[40:], atol=1e-3, rtol=1e-3)


def test_an_empty_cluster_stays_where_it_was_when_every_row_is_served():
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    start = torch.tensor([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]])
    means, inertia = lloyd(whole(x), start, 2.0, float(x.square().sum()))
    assert means.tolist() == start.tolist()
    assert inertia == pytest.approx(0, abs=1e-9)


def test_the_inertia_of_means_far_from_the_origin_is_exact_too():
    x = cloud(n=300, d=4, dtype=torch.float32) + 1e4
    start = x[:8].clone()
    energy = float(x.double().square().sum())
    _, found = lloyd(whole(x), start, largest(whole(x)), energy)
    assert found == pytest.approx(inertia(x, start), rel=1e-3)


def test_more_clusters_than_rows_are_refused():
    for init in ("random", "k-means||"):
        with pytest.raises(ValueError, match="10 clusters for 5 rows"):
            KMeans(10, init=init).fit(whole(cloud(n=5)))


def test_blocks_of_zeros_do_not_set_the_scale():
    x = torch.zeros(256, 2)
    x[128:] = 1e-6
    assert largest(whole(x, block=128)) < 1e-5
