"""The prefix index against sets of prefixes, beam search against scoring every item."""

import numpy as np
import pytest
import torch

from distrec.codes import beam
from distrec.codes.prefix import Ascending, PrefixIndex

SIZES = (5, 4, 6, 3)
OFFSETS = (1, 6, 10, 16)
VOCABULARY = 19


def catalogue(n, seed=0):
    keys = torch.randperm(5 * 4 * 6 * 3, generator=torch.Generator().manual_seed(seed))[:n]
    return torch.stack([keys // 72, keys // 18 % 4, keys // 3 % 6, keys % 3], 1)


def table(n_users, seed=1):
    """A Markov chain over tokens, other for each user; its first state is token 0."""
    logits = torch.randn(n_users, VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    return logits.log_softmax(2)


def chain(log_p):
    users = torch.arange(len(log_p))[:, None]

    def step(level, token, parent):
        return log_p[:, :1] if level == 0 else log_p[users, token]

    return step


def exhaustive(log_p, codes):
    tokens = codes + torch.tensor(OFFSETS)
    before = torch.cat([torch.zeros(len(codes), 1, dtype=torch.int64), tokens[:, :-1]], 1)
    return log_p[:, before, tokens].sum(2)


def test_children_are_those_of_some_item():
    codes = catalogue(100)
    index = PrefixIndex.of(codes, SIZES)
    paths = {(): torch.tensor([0])}
    for level in range(4):
        longer = {}
        for prefix, node in paths.items():
            child, code, is_child = (part[0] for part in index.children(level, node))
            found = code[is_child].tolist()
            assert found == sorted({row[level] for row in codes.tolist() if tuple(row[:level]) == prefix})
            longer |= {(*prefix, c): child[is_child][i : i + 1] for i, c in enumerate(found)}
        paths = longer
    leaves = {prefix: int(index.items(node)) for prefix, node in paths.items()}
    assert leaves == {tuple(row): i for i, row in enumerate(codes.tolist())}


def test_a_dead_beam_has_no_children_and_no_item():
    index = PrefixIndex.of(catalogue(20), SIZES)
    assert not index.children(1, torch.tensor([-1]))[2].any()
    assert index.items(torch.tensor([-1, 0])).tolist()[0] == -1


def test_a_beam_as_wide_as_the_catalogue_is_exhaustive_scoring():
    codes, log_p = catalogue(90), table(7)
    items, scores = beam.among_items(chain(log_p), PrefixIndex.of(codes, SIZES), OFFSETS, 7, 90)
    wanted, order = exhaustive(log_p, codes).sort(dim=1, descending=True)
    torch.testing.assert_close(scores, wanted)
    assert torch.equal(items, order)


def test_a_beam_wider_than_the_catalogue_leaves_places_empty():
    codes, log_p = catalogue(6), table(2)
    items, scores = beam.among_items(chain(log_p), PrefixIndex.of(codes, SIZES), OFFSETS, 2, 50)
    assert ((items >= 0) == scores.isfinite()).all()
    assert [sorted(row[row >= 0].tolist()) for row in items] == [list(range(6))] * 2


def test_only_allowed_items_come_out_and_in_the_same_order():
    codes, log_p = catalogue(90), table(5)
    allowed = torch.arange(0, 90, 7)
    items, _ = beam.among_items(chain(log_p), PrefixIndex.of(codes, SIZES, allowed), OFFSETS, 5, 13)
    scores = exhaustive(log_p, codes)[:, allowed]
    assert torch.equal(items, allowed[scores.argsort(dim=1, descending=True)])


def test_no_beam_leaves_the_catalogue():
    codes = catalogue(40)
    index = PrefixIndex.of(codes, SIZES)
    items, scores = beam.among_items(chain(table(10_000)), index, OFFSETS, 10_000, 10)  # 10⁵ decodes
    assert bool(((items >= 0) & (items < 40)).all())
    assert bool(scores.isfinite().all())
    assert bool((items.sort(dim=1).values.diff(dim=1) > 0).all())


def test_free_search_is_the_best_of_all_sequences():
    log_p = table(3)[:, :7, :7].log_softmax(2)
    tokens, scores = beam.free(chain(log_p), 7, 3, 3, 49 * 7)
    whole = log_p[:, 0, :, None, None] + log_p[:, :, :, None] + log_p[:, None, :, :]
    torch.testing.assert_close(scores, whole.flatten(1).sort(dim=1, descending=True).values)
    assert torch.equal(tokens[:, 0] @ torch.tensor([49, 7, 1]), whole.flatten(1).argmax(1))


def test_users_do_not_see_each_other():
    codes, log_p = catalogue(80), table(6)
    index, order = PrefixIndex.of(codes, SIZES), torch.tensor([3, 0, 5, 1, 4, 2])
    items, scores = beam.among_items(chain(log_p), index, OFFSETS, 6, 8)
    moved = beam.among_items(chain(log_p[order]), index, OFFSETS, 6, 8)
    assert torch.equal(items[order], moved[0])
    assert torch.equal(scores[order], moved[1])
    alone = beam.among_items(chain(log_p[2:3]), index, OFFSETS, 1, 8)
    assert torch.equal(items[2:3], alone[0])


@pytest.mark.parametrize("sizes", [(256,) * 4, (4096, 4096, 4096, 256), (4096,) * 4, (65_536, 65_536, 256)])
def test_an_index_takes_few_bytes_an_item(sizes):
    n = 200_000
    rng = np.random.default_rng(0)
    codes = torch.from_numpy(np.unique(np.stack([rng.integers(size, size=n) for size in sizes], 1), axis=0))
    index = PrefixIndex.of(codes, sizes)
    assert index.n_bytes <= 16 * len(codes)
    assert torch.equal(index.item.long(), torch.arange(len(codes)))  # unique codes come sorted


@pytest.mark.parametrize("top", [254, 255, 256, 2**15 - 1, 2**15, 2**16])
def test_the_largest_code_of_a_type_and_the_next_one_lead_to_their_items(top):
    codes = torch.tensor([[top, 0], [0, 1], [top - 1, 0], [top, 1]])
    index = PrefixIndex.of(codes, (top + 1, 2))
    assert index.items(index.leaves(codes)).tolist() == [0, 1, 2, 3]
    assert index.leaves(torch.tensor([[1, 0], [0, 0], [top - 1, 1]])).tolist() == [-1, -1, -1]
    values = torch.tensor([0] * 63 + [top, top, 3 * top])
    assert torch.equal(Ascending.of(values).at(torch.arange(66)), values)


def test_packed_numbers_are_those_that_were_packed():
    steps = torch.randint(3000, (1000,), generator=torch.Generator().manual_seed(0))
    for scale in (1, 10, 3000):
        values = (steps // scale).cumsum(0)
        assert torch.equal(Ascending.of(values).at(torch.arange(1000)), values)


@pytest.mark.parametrize(
    ("items", "message"), [(torch.tensor([], dtype=torch.int64), "no item is allowed"), (None, "same codes")]
)
def test_what_cannot_be_indexed(items, message):
    with pytest.raises(ValueError, match=message):
        PrefixIndex.of(torch.zeros(3, 4, dtype=torch.int64), SIZES, items)


def test_free_search_at_many_levels_of_many_tokens():
    log_p = torch.randn(2, 300, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    tokens, scores = beam.free(lambda *_: log_p[:, None].expand(-1, 300, -1), 300, 9, 2, 300)  # 300⁹ > 2⁶³
    assert torch.equal(tokens[:, 0], log_p.argmax(1)[:, None].expand(-1, 9))
    torch.testing.assert_close(scores[:, 0], 9 * log_p.amax(1))
