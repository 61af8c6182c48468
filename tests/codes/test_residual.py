"""Levels over quantisers, assignment rules, the last code, health."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from clouds import cloud, whole
from ranks import run_on

from distrec.codes import collisions, health
from distrec.codes.gmm import GaussianMixture
from distrec.codes.kmeans import KMeans
from distrec.codes.residual import Level, Levels, assign, energy, most_similar
from distrec.codes.rows import Rows, principal_axes, share
from distrec.runtime import Ranks


def gmm(level):
    return GaussianMixture(8, n_init=1, max_iter=5, seed=level)


def kmeans(level):
    return KMeans(8, seed=level)


def fitted(make, rows, assignment, n_levels=3):
    levels = Levels(make, n_levels, assignment)
    states = list(levels.run(rows))
    return levels, states


@pytest.mark.parametrize("make", [gmm, kmeans])
@pytest.mark.parametrize("assignment", ["cosine", "euclid", "fitted"])
def test_codes_are_those_of_brute_force(make, assignment):
    x = cloud(n=600, d=6, k=20)
    levels, _ = fitted(make, whole(x, block=128), assignment)
    left = x
    for number, level in enumerate(levels.levels_):
        book = level.codebook
        if assignment == "cosine":
            code = torch.nn.functional.cosine_similarity(left[:, None], book[None], dim=2).argmax(1)
        elif assignment == "euclid" or make is kmeans:
            code = torch.cdist(left, book).argmin(1)
        else:
            code = levels.codes_[:, number].long()
        assert torch.equal(levels.codes_[:, number].long(), code)
        left = left - book[code]
        assert levels.reports_[number]["residual"] == pytest.approx(float(left.square().sum(1).mean()), rel=1e-9)


def test_the_share_that_is_left_is_of_what_there_was_at_first():
    x = cloud(n=600, d=6, k=20) + 3
    levels, _ = fitted(kmeans, whole(x), "euclid")
    whole_energy = float(x.square().sum(1).mean())
    for report in levels.reports_:
        assert report["residual_share"] == pytest.approx(report["residual"] / whole_energy, rel=1e-9)
    assert levels.reports_[0]["residual_before"] == pytest.approx(whole_energy, rel=1e-9)
    assert levels.reports_[2]["residual_before"] == levels.reports_[1]["residual"]


def test_residual_energy_never_rises_with_euclid():
    x = cloud(n=800, d=10, k=30)
    levels, _ = fitted(gmm, whole(x), "euclid", n_levels=5)
    energies = [energy(whole(x))] + [report["residual"] for report in levels.reports_]
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(energies))


def test_posterior_is_the_mixtures_and_needs_one():
    x = cloud(n=500, d=5)
    levels, _ = fitted(gmm, whole(x), "posterior", 2)
    assert [report["mismatch"] for report in levels.reports_] == [0, 0]
    torch.testing.assert_close(assign(whole(x), levels.levels_), levels.codes_)
    with pytest.raises(ValueError, match="assignment=posterior needs a mixture"):
        fitted(kmeans, whole(x), "posterior")


def test_the_mismatch_between_posterior_and_cosine_is_reported():
    x = cloud(n=1000, d=4, k=6) + 4
    levels, _ = fitted(gmm, whole(x), "cosine", 1)
    mixture = GaussianMixture.of("diag", levels.levels_[0].mixture)
    expected = float((mixture.codes(whole(x)) != most_similar(whole(x), levels.levels_[0].codebook)).double().mean())
    assert levels.reports_[0]["mismatch"] == pytest.approx(expected)
    assert 0 < expected < 1


@pytest.mark.parametrize("assignment", ["cosine", "euclid"])
def test_new_rows_get_the_codes_they_had_among_the_fitted(assignment):
    x = cloud(n=400, d=6)
    levels, _ = fitted(kmeans, whole(x), assignment)
    torch.testing.assert_close(assign(whole(x[37:90].clone()), levels.levels_), levels.codes_[37:90])


def test_levels_go_on_from_any_state_bit_for_bit():
    x = cloud(n=500, d=6, dtype=torch.float32)
    levels, states = fitted(gmm, whole(x), "cosine")
    for cut in range(0, len(states), 2):
        again = Levels(gmm, 3, "cosine")
        rest = list(again.run(whole(x), states[cut]))
        assert len(rest) == len(states) - cut - 1
        assert torch.equal(again.codes_, levels.codes_)
        for one, other in zip(again.levels_, levels.levels_, strict=True):
            assert torch.equal(one.codebook, other.codebook)
        assert again.reports_ == levels.reports_


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_do_not_change_a_code(size):
    x = cloud(n=900, d=8, k=40, dtype=torch.float32)

    def fit():
        ranks = Ranks.here()
        own = share(len(x), ranks.rank, ranks.size, 128)
        rows = Rows(source=x[own], total=len(x), first=own.start, sum_=ranks.sum_, block=128)
        levels, _ = fitted(gmm, rows, "cosine")
        return levels.codes_.tolist(), levels.reports_

    alone, _ = fitted(gmm, whole(x, block=128), "cosine")
    for codes, reports in run_on(size, fit):
        assert codes == alone.codes_.tolist()
        assert reports == alone.reports_


def test_zero_rows_take_the_codeword_nearest_to_zero_under_cosine():
    book = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    x = torch.tensor([[0.0, 0.0], [5.0, 0.1], [0.1, 9.0]])
    assert most_similar(whole(x), book).tolist() == [2, 0, 1]
    assert Level(book, "cosine").codes(whole(x)).tolist() == [2, 0, 1]


def test_the_last_code_counts_within_equal_codes():
    codes = torch.tensor([[1, 2], [1, 2], [0, 0], [1, 2], [0, 0], [3, 3]])
    digit = collisions.running_digit(codes, (4, 4), 4)
    assert digit.tolist() == [0, 1, 0, 2, 1, 0]
    ids = torch.cat([codes, digit[:, None]], 1)
    assert len(ids.unique(dim=0)) == len(ids)


def test_later_items_go_on_after_the_codes_that_are_taken():
    taken = torch.tensor([[1, 2, 0], [1, 2, 1], [0, 0, 0]])
    new = torch.tensor([[0, 0], [1, 2], [2, 2], [1, 2]])
    assert collisions.running_digit(new, (4, 4), 4, taken).tolist() == [1, 2, 0, 3]
    with pytest.raises(ValueError, match=r"bucket \(1, 2\) holds 4 items, its last code only 3"):
        collisions.running_digit(new, (4, 4), 3, taken)


def test_known_items_of_other_buckets_move_no_last_code():
    """Sorted, (2, 0) would stand where (3, 3) does, and (0, 0) before all; of (1, 1) the largest taken counts."""
    taken = torch.tensor([[2, 0, 3], [0, 0, 2], [3, 9, 1], [1, 1, 0], [1, 1, 5]])
    assert collisions.running_digit(torch.tensor([[1, 1], [3, 3], [1, 1]]), (10, 10), 8, taken).tolist() == [6, 0, 7]
    with pytest.raises(ValueError, match="holds 8 items, its last code only 7"):
        collisions.running_digit(torch.tensor([[1, 1], [1, 1]]), (10, 10), 7, taken)


def test_a_full_bucket_and_a_full_space_are_just_in_bounds():
    assert collisions.running_digit(torch.tensor([[1, 1]] * 3), (4, 4), 3).tolist() == [0, 1, 2]
    collisions.check_space((2**31, 2**31))
    with pytest.raises(ValueError, match="exceed 63 bits"):
        collisions.check_space((2**31, 2**32))


def test_what_even_codes_share_and_their_largest_bucket_are_what_draws_have():
    draws = torch.randint(500, (200, 300), generator=torch.Generator().manual_seed(0))
    counts = torch.stack([torch.bincount(draw, minlength=500) for draw in draws])
    shared = ((counts > 1) * counts).sum(1).double().mean() / 300
    assert collisions.expected_shared(300, 500) == pytest.approx(float(shared), abs=0.005)
    assert collisions.expected_shared(2, 10) == pytest.approx(0.1)
    assert (collisions.expected_shared(1, 10), collisions.expected_shared(1, 1), collisions.expected_shared(2, 1)) == (
        0,
        0,
        1,
    )
    assert abs(collisions.expected_largest(300, 500) - float(counts.amax(1).double().mean())) < 1


def test_a_bucket_beyond_the_code_space_is_named():
    codes = torch.tensor([[5, 6]] * 300 + [[1, 1]])
    with pytest.raises(ValueError, match=r"bucket \(5, 6\) holds 300 items, its last code only 256"):
        collisions.running_digit(codes, (256, 256), 256)
    with pytest.raises(ValueError, match="exceed 63 bits"):
        collisions.pack(codes, (65_536,) * 4)


def test_health_of_known_codes():
    even = health.use(torch.arange(64) % 8, 16)
    assert (even["used"], even["largest"], even["perplexity"], even["entropy"]) == (
        8,
        8,
        pytest.approx(8),
        pytest.approx(3),
    )
    one = health.use(torch.zeros(10, dtype=torch.int64), 4)
    assert (one["used"], one["perplexity"]) == (1, 1)
    shared = health.collisions(torch.tensor([[0, 1], [0, 1], [0, 1], [2, 2], [3, 3], [3, 3]]), (4, 4))
    assert shared == {"distinct": 3, "groups": 2, "items": 5, "share": 5 / 6, "largest": 3}
    complaints = health.complaints([one], shared, 0.5, 0.5)
    assert "level 1 uses 1 of 4 codes" in complaints[0]
    assert "83.3% of the items share" in complaints[1]
    assert math.isclose(even["entropy"], 3)
    assert health.complaints([even], shared, 0.5, 0.9) == []
    assert health.complaints([even], shared, 0.5, 5 / 6) == []  # at the limit, not above it


@pytest.mark.parametrize("assignment", ["euclid", "cosine"])
def test_an_offset_common_to_all_vectors_does_not_blur_the_codes(assignment):
    """float32 against float64, a hundred times further out than the clusters are wide."""
    x = cloud(n=600, d=8, k=10) + 300
    levels, _ = fitted(kmeans, Rows.whole(x.float()), assignment, 1)
    exact = Level(levels.levels_[0].codebook, assignment).codes(Rows.whole(x.float(), dtype=torch.float64))
    limit = 0.002 if assignment == "euclid" else 0.2
    assert float((levels.codes_[:, 0] != exact).double().mean()) <= limit


def test_turned_rows_give_the_same_codes_on_ranks_held_or_not():
    x = cloud(n=900, d=8, k=40, dtype=torch.float32)
    centre, rotation, _ = principal_axes(whole(x, block=128), 5)
    alone, _ = fitted(gmm, whole(x, block=128, centre=centre, rotation=rotation), "cosine")

    def fit():
        ranks = Ranks.here()
        own = share(len(x), ranks.rank, ranks.size, 128)
        rows = Rows(source=x[own], total=len(x), first=own.start, sum_=ranks.sum_, block=128, centre=centre)
        levels, _ = fitted(gmm, replace(rows, rotation=rotation, memory=0), "cosine")
        return levels.codes_.tolist()

    assert run_on(3, fit) == [alone.codes_.tolist()] * 3


def test_principal_axes_are_numpys():
    x = cloud(n=300, d=6)
    centre, rotation, held = principal_axes(whole(x), 3)
    values, axes = torch.linalg.eigh(x.T.cov(correction=0))
    assert held == pytest.approx(float(values[3:].sum() / values.sum()))
    torch.testing.assert_close(centre, x.mean(0))
    torch.testing.assert_close(
        (rotation.T @ axes.flip(1)[:, :3]).abs(), torch.eye(3, dtype=torch.float64), atol=1e-9, rtol=0
    )
    with pytest.raises(ValueError, match="7 principal axes of vectors with 6 dimensions"):
        principal_axes(whole(x), 7)
