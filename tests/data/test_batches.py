"""Batches hold the right items at the right places, and their order is a pure function of (seed, epoch, step)."""

from itertools import chain

import numpy as np
import pytest
import torch
from pretended import Gpu

from distrec.data import batches


def plain_sequence(data, u, end):
    return data.item[data.start[u] : end].tolist()


@pytest.mark.parametrize("max_len", [3, 1000])
def test_a_training_batch_holds_each_item_with_its_successor(small, max_len):
    samples = batches.training(small, "sequences", max_len)
    batch = batches.collate(small, samples, np.arange(len(samples)))
    for row in range(len(samples)):
        sequence = plain_sequence(small, batch.user[row], small.train_end[batch.user[row]])[-max_len - 1 :]
        real = batch.is_item[row]
        assert batch.items[row][real].tolist() == sequence[:-1]
        assert batch.targets[row][batch.is_target[row]].tolist() == sequence[1:]
        assert (batch.is_item[row] == batch.is_target[row]).all()
        assert not real[: len(real) - len(sequence) + 1].any(), "left-padded"


def test_prefix_samples_are_every_prefix_with_its_next_item(small):
    samples = batches.training(small, "prefixes", 1000)
    expected = set()
    for u in range(small.n_users):
        sequence = plain_sequence(small, u, small.train_end[u])
        expected |= {(u, tuple(sequence[:n]), sequence[n]) for n in range(1, len(sequence))}
    batch = batches.collate(small, samples, np.arange(len(samples)))
    assert batch.is_target.sum() == len(samples)
    assert batch.is_target[:, -1].all()
    ours = {
        (int(u), tuple(items[real].tolist()), int(target))
        for u, items, real, target in zip(batch.user, batch.items, batch.is_item, batch.targets[:, -1], strict=True)
    }
    assert ours == expected
    assert len(samples) == len(expected)


def test_beauty_has_the_published_number_of_prefixes(beauty):
    assert len(batches.training(beauty, "prefixes", 20)) == 131_413


@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluation_reads_everything_before_the_target_and_nothing_after(small, split):
    samples = batches.evaluation(small, split, 1000)
    batch = batches.collate(small, samples, np.arange(len(samples)))
    for row, u in enumerate(batch.user.tolist()):
        place = (small.train_end if split == "valid" else small.valid_end)[u]
        assert batch.items[row][batch.is_item[row]].tolist() == plain_sequence(small, u, place)
        assert batch.targets[row, -1] == small.item[place]


@pytest.mark.parametrize("max_len", [1, 2, 3])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluation_reads_the_latest_items_and_as_many_as_it_may(small, split, max_len):
    samples = batches.evaluation(small, split, max_len)
    batch = batches.collate(small, samples, np.arange(len(samples)))
    assert batch.items.shape[1] == max_len
    for row, u in enumerate(batch.user.tolist()):
        place = (small.train_end if split == "valid" else small.valid_end)[u]
        assert batch.items[row][batch.is_item[row]].tolist() == plain_sequence(small, u, place)[-max_len:]


def test_no_sample_reads_a_held_out_interaction(small):
    for kind in ("sequences", "prefixes"):
        samples = batches.training(small, kind, 50)
        assert (samples.end <= small.train_end[samples.user]).all()
        assert (samples.begin >= small.start[samples.user]).all()
        train = np.bincount(small.item[small.is_train()], minlength=small.n_items)
        assert (samples.items_read(small) <= train).all()


@pytest.mark.parametrize("budget", [1, 30, 500, 10**6])
def test_steps_hold_every_sample_once_within_the_budget(small, budget):
    samples = batches.training(small, "prefixes", 50)
    plan = batches.steps(samples, budget, 3, 7)
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(samples)))
    for rows in plan:
        assert len(rows) == 1 or len(rows) * samples.lengths()[rows].max() <= budget


def test_the_order_is_a_pure_function_of_seed_and_epoch(small):
    samples = batches.training(small, "sequences", 50)

    def flat(seed, epoch):
        return np.concatenate(batches.steps(samples, 100, seed, epoch)).tolist()

    assert flat(0, 0) == flat(0, 0)
    assert flat(0, 0) != flat(0, 1)
    assert flat(0, 0) != flat(1, 0)


def test_buckets_waste_little_padding(beauty):
    samples = batches.training(beauty, "sequences", 50)
    plan = batches.steps(samples, 4096, 0, 0)
    lengths = samples.lengths()
    padded = sum(len(rows) * lengths[rows].max() for rows in plan)
    assert padded < 1.1 * lengths.sum()


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("micro", [20, 60, 10**6])
def test_ranks_and_pieces_share_a_step_without_loss_or_repeat(small, size, micro):
    samples = batches.training(small, "sequences", 50)
    rows = batches.steps(samples, 200, 0, 0)[0]
    every = [batches.micro_batches(small, samples, rows, micro, rank, size) for rank in range(size)]
    assert len({len(pieces) for pieces in every}) == 1, "all ranks run as often"
    counted = [batch.user[batch.is_target.any(1)].tolist() for pieces in every for batch in pieces]
    assert sorted(chain.from_iterable(counted)) == sorted(samples.user[rows].tolist())
    assert sum(int(batch.is_target.sum()) for pieces in every for batch in pieces) == samples.n_targets(rows)
    for pieces in every:
        for batch in pieces:
            assert batch.items.numel() <= max(micro, batch.items.shape[1])


def test_padding_is_invisible_except_for_its_mask(small):
    samples = batches.training(small, "sequences", 50)
    order = np.argsort(samples.lengths())
    short, both = batches.collate(small, samples, order[:1]), batches.collate(small, samples, order[[0, -1]])
    width = short.items.shape[1]
    assert torch.equal(both.items[0, -width:], short.items[0])
    assert not both.is_item[0, :-width].any()


def test_every_step_of_prefixes_holds_as_many_whatever_their_lengths(small):
    samples = batches.training(small, "prefixes", 20)
    sizes = [len(rows) for rows in batches.steps(samples, 640, 0, 0)]
    assert sorted(sizes)[1:] == [32] * (len(sizes) - 1)
    assert sum(sizes) == len(samples)
    rows = batches.steps(samples, 640, 0, 0)[0]
    pieces = batches.micro_batches(small, samples, rows, 160, 0, 1)
    assert max(len(piece.items) for piece in pieces) == 8


@pytest.mark.parametrize("kind", ["sequences", "prefixes"])
def test_each_target_knows_what_its_user_has(small, kind):
    samples = batches.training(small, kind, 10)
    batch = batches.collate(small, samples, np.arange(7), weightless=2)
    rows, columns = batch.is_target.nonzero(as_tuple=True)
    owned = batch.owned()
    assert len(owned) == len(rows)
    for n, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        assert batch.targets[row, column] == batch.targets.flatten()[batch.place[n]]
        items = {*batch.items[row][batch.is_item[row]].tolist(), *batch.targets[row][batch.is_target[row]].tolist()}
        assert {*owned[n].tolist()} - {-1} == items


@pytest.mark.parametrize("kind", ["sequences", "prefixes"])
def test_a_batch_is_the_same_on_a_gpu(small, kind):
    """Padding, rows that count no target and the places of those that do."""
    samples = batches.training(small, kind, 10)
    batch = batches.collate(small, samples, np.arange(7), weightless=2)
    with Gpu() as gpu:
        there = batch.to(torch.device("cuda"))
        assert not gpu.waits
        for name in ("user", "items", "is_item", "targets", "is_target", "place"):
            value = getattr(there, name)
            assert value.is_cuda
            assert torch.equal(value.cpu(), getattr(batch, name)), name
    assert batch.place.tolist() == batch.is_target.flatten().nonzero()[:, 0].tolist()
    part = batch.rows(slice(2, 5))
    assert part.place.tolist() == batch.is_target[2:5].flatten().nonzero()[:, 0].tolist()
