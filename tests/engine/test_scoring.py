"""Exact ranks: against brute force, for any batch size and number of processes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from brute import brute
from ranks import run_on

from distrec import knobs
from distrec.engine.evaluation import exact, metrics, scoring
from distrec.models.build import build
from distrec.runtime import Ranks

CPU = torch.device("cpu")


class Fixed(torch.nn.Module):
    """Scores that depend on the user alone."""

    max_len = 20

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def scorer(self, batch):
        own = self.scores[batch.user]
        return lambda items: own[:, items].clone()


class Lister(torch.nn.Module):
    """A generative model: it lists, it does not score."""

    max_len, beams = 20, 50

    def __init__(self, lists):
        super().__init__()
        self.lists = lists

    def listings(self, batch, every):
        listed = self.lists[batch.user][:, : self.beams]
        return {"constrained": (listed, self.scores(listed))}

    def scores(self, listed):
        return -torch.arange(listed.shape[1]).float().expand(listed.shape)


def rank(model, data, split="test", **score):
    return scoring.rank_split(model, data, split, knobs.Score(**score), Ranks(), CPU)


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("levels", [3, 10**6])
def test_ranks_equal_brute_force_with_and_without_ties(small, split, mask, levels, monkeypatch):
    scores = torch.randint(levels, (small.n_users, small.n_items)).float()
    for chunk in (7, 64, 10_000):
        monkeypatch.setitem(exact.CHUNK, "cpu", chunk)
        ours = rank(Fixed(scores), small, split, mask_history=mask).standing
        np.testing.assert_array_equal(ours, brute(scores, small, split, mask))


def test_sampled_ranks_equal_brute_force(small):
    scores = torch.randint(5, (small.n_users, small.n_items)).float()
    ranking = rank(Fixed(scores), small)
    for u, target, sampled in zip(ranking.user, ranking.target, zip(*ranking.sampled, strict=True), strict=True):
        others = scores[u][small.negatives[u].astype(int)]
        own = scores[u, target]
        assert sampled == (int((others > own).sum()), int((others == own).sum()))


def test_perfect_random_and_tied_scorers(small):
    users, places = small.targets("test")
    perfect = torch.zeros(small.n_users, small.n_items)
    perfect[users, small.item[places]] = 1
    found = metrics.summarise(rank(Fixed(perfect), small).standing)
    assert all(found[name] == 1 for name in found)
    tied = rank(Fixed(torch.zeros(small.n_users, small.n_items)), small).rank
    history = np.array([len(set(small.item[small.start[u] : p].tolist())) for u, p in zip(users, places, strict=True)])
    np.testing.assert_array_equal(tied, 1 + (small.n_items - 1 - history) / 2)
    hits = [
        metrics.summarise(rank(Fixed(torch.rand(small.n_users, small.n_items)), small, mask_history=False).standing)[
            "hr@10"
        ]
        for _ in range(30)
    ]
    assert np.mean(hits) == pytest.approx(10 / small.n_items, abs=4 * np.sqrt(10 / small.n_items / 30 / len(users)))


@pytest.fixture
def repeating(small):
    """Every third user has had the target of the test, every fifth that of the validation."""
    item = small.item.copy()
    item[small.start[:-1:3]] = item[small.valid_end[::3]]
    item[small.start[:-1:5] + 1] = item[small.train_end[::5]]
    return replace(small, item=item, negatives=None)


def repeats_of(data, split):
    users, places = data.targets(split)
    return np.array([data.item[p] in data.item[data.start[u] : p] for u, p in zip(users, places, strict=True)])


@pytest.mark.parametrize("mask", [None, True, False])
@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("levels", [3, 10**6])
def test_a_repeated_target_stands_among_all_items_and_a_new_one_among_new_ones(repeating, split, mask, levels):
    scores = torch.randint(levels, (repeating.n_users, repeating.n_items)).float()
    found = rank(Fixed(scores), repeating, split, mask_history=mask)
    np.testing.assert_array_equal(found.standing, brute(scores, repeating, split, mask is not False))
    np.testing.assert_array_equal(found.repeats, repeats_of(repeating, split))
    assert 0.2 < found.repeats.mean() < 0.6


def test_who_has_had_everything_gives_nothing_away(small):
    """Ten items, all of them had by everybody: whoever knows nothing hits one in ten."""
    had = np.tile(np.arange(10, dtype=np.int32), (small.n_users, 2))[:, :11]
    start = np.arange(small.n_users + 1) * 11
    data = replace(small, item=had.ravel(), time=np.zeros(had.size, np.int64), start=start, train_end=start[1:] - 2, valid_end=start[1:] - 1, items=small.items.select(range(10)), negatives=None)  # fmt: skip
    found = rank(Fixed(torch.zeros(small.n_users, 10)), data)
    assert found.repeats.all()
    assert metrics.summarise(found.standing)["hr@1"] == pytest.approx(0.1)


@pytest.mark.parametrize("mask", [True, False])
def test_what_is_generated_stands_as_what_is_scored(repeating, mask):
    """Whole lists of all items, in the order of scores with ties: one protocol."""
    scores = torch.randint(6, (repeating.n_users, repeating.n_items)).float()
    order = scores.argsort(dim=1, descending=True)
    model = Lister(order)
    model.beams, model.scores, model.max_len = repeating.n_items, lambda listed: scores.gather(1, order), 20
    model.listings = lambda batch, every: {"constrained": (order[batch.user], scores.gather(1, order)[batch.user])}
    scored, listed = (rank(each, repeating, mask_history=mask) for each in (Fixed(scores), model))
    np.testing.assert_array_equal(listed.standing, scored.standing)
    np.testing.assert_array_equal(listed.repeats, scored.repeats)
    assert not listed.short.any()


def test_lists_that_are_short_without_their_history_are_counted(small):
    users, places = small.targets("test")
    lists = torch.stack([torch.randperm(small.n_items) for _ in range(small.n_users)])
    for u, place in zip(users[::2], places[::2], strict=True):  # what they have comes first, 20 and more
        had = torch.from_numpy(np.unique(small.item[small.start[u] : place]).astype(np.int64))
        lists[u] = torch.cat([had, lists[u][~torch.isin(lists[u], had)]])
    model = Lister(lists)
    model.beams = 25
    found, kept = (rank(model, small, mask_history=mask) for mask in (True, False))
    assert not kept.short.any()
    for i, (u, place) in enumerate(zip(users, places, strict=True)):
        own, had = lists[u, :25].tolist(), set(small.item[small.start[u] : place].tolist())
        left, target = [item for item in own if item not in had], int(small.item[place])
        assert found.short[i] == (len(left) < 20 and target not in left)
    assert 0 < found.short.sum() < len(users)


def test_a_list_ranks_by_its_places_and_misses_are_infinite(small):
    lists = torch.stack([torch.randperm(small.n_items) for _ in range(small.n_users)])
    ranking = rank(Lister(lists), small, mask_history=False)
    for u, target, found in zip(ranking.user, ranking.target, ranking.rank, strict=True):
        place = lists[u].tolist().index(target) + 1
        assert found == (place if place <= 50 else np.inf)
    assert ranking.sampled is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_stops_the_ranking(small, bad):
    scores = torch.zeros(small.n_users, small.n_items)
    users, places = small.targets("test")
    scores[users[0], small.item[places[0]]] = bad
    with pytest.raises(ValueError, match="not finite"):
        rank(Fixed(scores), small)


def test_one_score_that_is_not_a_number_anywhere_stops_it_too(small):
    scores = torch.zeros(small.n_users, small.n_items)
    users, places = small.targets("test")
    scores[users[3], (int(small.item[places[3]]) + 1) % small.n_items] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        rank(Fixed(scores), small, mask_history=False)


@pytest.fixture(scope="module")
def sasrec(small):
    return build(knobs.SasRec(d_model=16, max_len=20), small, 0)


@pytest.fixture
def many_blocks(monkeypatch):
    """So that the small catalogue makes several blocks, as a real one does."""
    monkeypatch.setattr(scoring, "BLOCK", 16)


@pytest.mark.usefixtures("many_blocks")
def test_any_batch_size_gives_the_same_bits(small, sasrec):
    one, *others = (rank(sasrec, small, batch_users=size) for size in (1, 16, 40, 10_000))
    for other in others:
        assert np.array_equal(one.rank, other.rank)
        assert np.array_equal(one.sampled, other.sampled)


@pytest.mark.usefixtures("many_blocks")
@pytest.mark.parametrize("size", [2, 4])
def test_any_number_of_processes_gives_the_same_bits(small, sasrec, size):
    alone = rank(sasrec, small)

    def share():
        return scoring.rank_split(sasrec, small, "test", knobs.Score(), Ranks.here(), CPU)

    for ranking in run_on(size, share):
        assert np.array_equal(ranking.user, alone.user)
        assert np.array_equal(ranking.rank, alone.rank)
        assert np.array_equal(ranking.sampled, alone.sampled)
    report = metrics.summarise(alone.standing, 200)
    assert report == metrics.summarise(run_on(size, share)[-1].standing, 200)


def test_a_target_whose_score_differs_in_its_last_bit_is_counted_again(small):
    """A scorer whose gathered columns come out one bit lower than its ranges: ranks follow the range."""

    class Wobbly(Fixed):
        def scorer(self, batch):
            own = self.scores[batch.user]
            return lambda items: (
                own[:, items].clone()
                if isinstance(items, slice)
                else torch.nextafter(own[:, items], torch.tensor(-torch.inf))
            )

    scores = torch.randint(4, (small.n_users, small.n_items)).float()
    np.testing.assert_array_equal(rank(Wobbly(scores), small).standing, brute(scores, small, "test"))


class Decoder(Lister):
    """One that generates in two ways; the second one's list holds places that are no item."""

    def listings(self, batch, every):
        found = super().listings(batch, every)
        listed, scores = found["constrained"]
        broken = listed.clone()
        broken[:, 1::2] = -1
        return found | {"free": (broken, scores)}


def test_every_way_of_decoding_is_ranked_items_and_ids_apart(small):
    lists = torch.stack([torch.randperm(small.n_items) for _ in range(small.n_users)])
    found = scoring.rank_split(
        Decoder(lists), small, "test", knobs.Score(mask_history=False), Ranks(), CPU, thorough=True
    )
    place = np.array([lists[u].tolist().index(t) for u, t in zip(found.user, found.target, strict=True)])
    np.testing.assert_array_equal(found.rank, np.where(place < 50, place + 1, np.inf))
    np.testing.assert_array_equal(found.rank, found.others["constrained"].rank)
    seen = (place < 50) & (place % 2 == 0)
    np.testing.assert_array_equal(found.others["free_ids"].rank, np.where(seen, place + 1, np.inf))
    np.testing.assert_array_equal(found.others["free"].rank, np.where(seen, place // 2 + 1, np.inf))
    assert (found.invalid == 0.5).all()


def test_a_list_without_its_history_moves_up(small):
    lists = torch.stack([torch.randperm(small.n_items) for _ in range(small.n_users)])
    kept, dropped = (rank(Lister(lists), small, mask_history=mask) for mask in (False, True))
    assert np.array_equal(dropped.rank, rank(Lister(lists), small).rank)
    assert (kept.rank >= dropped.rank).all()
    assert (kept.rank > dropped.rank).any()
    users, places = small.targets("test")
    for u, place, found in zip(users, places, dropped.rank, strict=True):
        history, target = set(small.item[small.start[u] : place].tolist()), int(small.item[place])
        left = [item for item in lists[u, :50].tolist() if item not in history or target in history]
        assert found == (left.index(target) + 1 if target in left else np.inf)


def test_equal_beams_tie_and_what_is_not_listed_does_not(small):
    lists = torch.arange(small.n_items).expand(small.n_users, -1)
    model = Lister(lists)
    model.scores = lambda listed: -(torch.arange(listed.shape[1]) // 4).float().expand(listed.shape)  # fours
    found = rank(model, small, mask_history=False)
    is_listed = found.target < 50
    np.testing.assert_array_equal(found.standing.better, np.where(is_listed, found.target // 4 * 4, np.inf))
    wanted = np.where(found.target >= 48, 1, 3)  # of the last group two are listed
    np.testing.assert_array_equal(found.standing.ties, np.where(is_listed, wanted, 0))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 3, 1024, 4095])
def test_scores_are_told_apart_to_the_last_bit(kind, width):
    """Next to each other, of either sign, subnormal, the largest: what is higher, equal, lower."""
    limits = torch.finfo(kind)
    tiny = limits.smallest_normal * limits.eps
    few = torch.tensor([0.0, tiny, -tiny, 2 * tiny, limits.smallest_normal, 1.0, -1.0, 2.0, -limits.max, limits.max / 2, 1e-20], dtype=kind)  # fmt: skip
    few = torch.cat([few, torch.nextafter(few, torch.tensor(0.0, dtype=kind)), torch.nextafter(few, torch.tensor(3.0, dtype=kind))])  # fmt: skip
    scores = few[torch.randint(len(few), (200, width))]
    own = few[torch.randint(len(few), (200, 1))]
    weighed = exact._weighed(scores.clone(), own)
    higher, lower = exact._unweighed(weighed[None], exact._WEIGHT["cpu"])
    assert torch.equal(higher, (scores > own).sum(1).double())
    assert torch.equal(lower, (scores < own).sum(1).double())


@pytest.mark.parametrize(("own", "score"), [(1.0, 0.0), (1.0, 2.0), (1.0, 1.0)])
def test_a_chunk_may_hold_items_of_one_kind_alone(own, score):
    weighed = exact._weighed(torch.full((1, 1024), score), torch.full((1, 1), own))
    higher, lower = exact._unweighed(weighed[None], exact._WEIGHT["cpu"])
    assert (higher.item(), lower.item()) == (1024 * (score > own), 1024 * (score < own))


def test_users_without_negatives_have_no_sampled_standing(small):
    negatives = np.array(small.negatives)
    negatives[::4] = -1
    scores = torch.randint(5, (small.n_users, small.n_items)).float()
    found, whole = rank(Fixed(scores), replace(small, negatives=negatives)), rank(Fixed(scores), small)
    lacks = found.user % 4 == 0
    assert np.isnan(found.sampled.better[lacks]).all()
    np.testing.assert_array_equal(found.sampled.of(~lacks), whole.sampled.of(~lacks))
    np.testing.assert_array_equal(found.standing, whole.standing)


def test_a_target_that_is_not_listed_ties_with_no_empty_place():
    """Places of a list with nothing in them have the score -inf."""
    scores = torch.tensor([[-1.0, -2.0, -torch.inf, -torch.inf]])
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    assert scoring._listed(nothing, nothing, scores).tolist() == [[torch.inf], [0]]
    second = torch.tensor([[False, True, False, False]])
    assert scoring._listed(second, nothing, scores).tolist() == [[1], [0]]
