"""Rows, their shares and what is drawn of them, against numpy."""

import numpy as np
import pytest
import torch
from clouds import cloud, whole

from distrec.codes.rows import ExactSum, Rows, largest, principal_axes, share


@pytest.mark.parametrize("total", [0, 1, 64, 1000, 1024])
@pytest.mark.parametrize("size", [1, 3, 7, 40])
def test_shares_are_whole_blocks_as_many_for_each_as_can_be(total, size):
    parts = [share(total, rank, size, 64) for rank in range(size)]
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(total))
    assert all(part.start % 64 == 0 for part in parts if part.start < part.stop)
    counts = [-(-(part.stop - part.start) // 64) for part in parts]
    assert max(counts) - min(counts) <= 1


def test_principal_axes_are_those_of_numpy_with_the_largest_coordinate_positive():
    x = cloud(n=300, d=7) + 5
    centre, axes, held = principal_axes(whole(x), 3)
    torch.testing.assert_close(centre, x.mean(0))
    _, values, vectors = np.linalg.svd((x - x.mean(0)).numpy(), full_matrices=False)
    assert held == pytest.approx((values[:3] ** 2).sum() / (values**2).sum())
    np.testing.assert_allclose(np.abs(axes.T.numpy()), np.abs(vectors[:3]), atol=1e-8)
    assert (axes.gather(0, axes.abs().argmax(0, keepdim=True)) > 0).all()
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    with pytest.raises(ValueError, match="8 principal axes of vectors with 7 dimensions"):
        principal_axes(whole(x), 8)


def test_the_best_of_rows_that_are_all_bad_are_rows_and_in_order():
    """Blocks that are not full must not lend their empty places, and numbers are those of the whole table."""
    x = torch.arange(70.0)[:, None]
    numbers, keys = whole(x, block=32).best(lambda _, part: -1 - part[:, 0], 40)
    assert numbers.tolist() == list(range(40))
    assert keys.tolist() == [-1.0 - n for n in range(40)]
    assert whole(x, block=32).best(lambda _, part: -part[:, 0], 500)[0].tolist() == list(range(70))
    second = Rows(source=x[32:], total=70, first=32, block=32)
    numbers, _ = second.best(lambda _, part: part[:, 0], 2)
    assert numbers.tolist() == [69, 68]


def test_the_first_bad_row_is_named_and_all_are_counted():
    x = torch.zeros(100, 3)
    x[[40, 77]] = torch.inf
    x[93, 1] = torch.nan
    with pytest.raises(ValueError, match="3 of 100 rows hold NaN or infinity, the first of them row 40"):
        largest(whole(x, block=16))


def test_a_row_draws_the_same_number_on_any_rank_another_in_each_block_and_for_each_seed():
    x = torch.zeros(4096, 1)
    rows, second = whole(x, block=1024), Rows(source=x[2048:], total=4096, first=2048, block=1024)
    drawn = [rows.random(place, 3, 1) for place in rows._places()]
    assert torch.equal(second.random(slice(0, 1024), 3, 1), drawn[2])
    assert len({tuple(part.tolist()) for part in (*drawn, rows.random(slice(0, 1024), 3, 2))}) == 5
    together = torch.cat(drawn)
    assert float(together.mean()) == pytest.approx(1, abs=0.06)
    assert float((together > 1).double().mean()) == pytest.approx(np.exp(-1), abs=0.03)  # exponential


def test_worked_out_rows_are_kept_as_long_as_their_bytes_fit():
    x = cloud(n=100, d=6, dtype=torch.float32)
    n_bytes = 100 * 6 * 4
    for memory, is_kept in ((n_bytes, True), (n_bytes - 1, False)):
        rows = whole(x, centre=x.mean(0), memory=memory)
        assert (rows.held() is not rows) == is_kept
    assert whole(x, memory=0).held().source is x  # nothing is worked out


def test_rows_by_number_are_there_wherever_they_stand_and_zeros_elsewhere():
    x = torch.arange(1.0, 101)[:, None] * torch.ones(1, 2)
    part = Rows(source=x[32:64], total=100, first=32, block=32)
    assert part.at(torch.tensor([31, 32, 63, 64, 99])).tolist() == [[0, 0], [33, 33], [64, 64], [0, 0], [0, 0]]
    turned = Rows(source=x[32:64], total=100, first=32, block=32, rotation=torch.eye(2))
    assert turned.at(torch.tensor([31, 32, 63, 64, 99])).tolist() == [[0, 0], [33, 33], [64, 64], [0, 0], [0, 0]]
    assert part.together(torch.arange(32)).tolist() == [0] * 32 + list(range(32)) + [0] * 36


def test_a_second_word_of_an_exact_sum_takes_up_what_the_first_rounds_off():
    bound, values = 2.0**40, torch.tensor([1.0, 1e-9, 1e-12, 3e-13], dtype=torch.float64)
    one, two = (ExactSum((4,), bound, words=words) for words in (1, 2))
    for total in (one, two):
        for _ in range(5):
            total.add(values)
    assert not torch.allclose(one.over(lambda *_: None), 5 * values, rtol=1e-3, atol=0)
    torch.testing.assert_close(two.over(lambda *_: None), 5 * values, rtol=2e-2, atol=0)


def test_an_exact_sum_may_reach_its_bound():
    total = ExactSum((1,), 8.0)
    for _ in range(8):
        total.add(torch.ones(1))
    assert total.over(lambda *_: None).tolist() == [8]
    for _ in range(16):
        total.add(-torch.ones(1))
    assert total.over(lambda *_: None).tolist() == [-8]
