"""Items spread over processes: the same ranks and lists, to the last bit, as where each holds all of them."""

import itertools

import numpy as np
import pytest
import torch
from brute import brute
from decoders import frellm, saved
from ranks import run_on

from distrec import config as cfg
from distrec import knobs
from distrec.data import histories
from distrec.engine.evaluation import exact, scoring, shelf
from distrec.jobs import recommend
from distrec.models import ranking
from distrec.models.build import build
from distrec.runtime import Ranks, Stopped

CPU = torch.device("cpu")
WIDTHS = [7, 64, 1024]  # many chunks; three for two; one, so that a process has none


@pytest.fixture(params=WIDTHS)
def chunked(request, monkeypatch):
    monkeypatch.setattr(scoring, "BLOCK", 16)
    monkeypatch.setitem(exact.CHUNK, "cpu", request.param)
    for module in (ranking, recommend):
        monkeypatch.setattr(module, "CHUNK", request.param)
    monkeypatch.setattr(ranking, "PIECE", request.param)


class Whole(ranking.TableModel):
    """Whole numbers, so that every product is exact; keeps the ranges that it was asked for."""

    max_len = 20

    def __init__(self, data, levels):
        super().__init__()
        self.n_items, self.asked = data.n_items, []
        generator = torch.Generator().manual_seed(levels)
        self.states = torch.randint(-levels, levels + 1, (data.n_users, 4), generator=generator).float()
        self.table = torch.randint(-levels, levels + 1, (data.n_items, 4), generator=generator).float()

    def user_states(self, batch):
        return self.states[batch.user]

    def item_vectors(self, items):
        self.asked.append(items)
        return self.table[items]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("shelf"), width=32, layers=2)


@pytest.fixture
def model(request, small, decoder):
    if request.param == "frellm":
        return frellm(decoder, n_items=small.n_items).eval()
    return build(knobs.SasRec(d_model=16, max_len=20), small, 0).eval()


def ranks_of(model, data, split="test", shard=True, **score):
    return scoring.rank_split(model, data, split, knobs.Score(shard_items=shard, **score), Ranks.here(), CPU)


def lists_of(model, data, k=9, shard=True, among=None, **score):
    asked = histories.known(data)
    config = knobs.Score(shard_items=shard, **{"batch_users": 32, **score})
    return recommend.listed(model, asked, k, among, config, data, Ranks.here())


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("model", ["sasrec", "frellm"], indirect=True)
def test_ranks_are_those_of_one_process_to_the_last_bit(small, model):
    for split, mask, users in (("test", True, 1024), ("valid", False, 1)):
        score = {"split": split, "mask_history": mask, "batch_users": users}
        alone = ranks_of(model, small, shard=False, **score)
        here = ranks_of(model, small, **score)
        for found in (
            here,
            *(r for size in (2, 3) for r in run_on(size, lambda score=score: ranks_of(model, small, **score))),
        ):
            assert np.array_equal(found.user, alone.user)
            assert np.array_equal(found.rank, alone.rank)
            assert np.array_equal(found.sampled, alone.sampled)


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("levels", [0, 1, 100])
@pytest.mark.parametrize("mask", [True, False])
def test_ranks_equal_brute_force_with_ties_and_each_process_holds_its_share(small, levels, mask):
    def share():
        model = Whole(small, levels)
        return ranks_of(model, small, mask_history=mask), model.asked

    model = Whole(small, levels)
    scores = model.states @ model.table.T
    wanted = brute(scores, small, "test", mask)
    for size in (1, 2, 3):
        answers = run_on(size, share)
        for found, _ in answers:
            np.testing.assert_array_equal(found.standing, wanted)
            others = np.take_along_axis(scores.numpy()[found.user], small.negatives[found.user].astype(int), 1)
            own = scores.numpy()[found.user, found.target][:, None]
            np.testing.assert_array_equal(found.sampled, [(others > own).sum(1), (others == own).sum(1)])
        held = [items for _, (items,) in answers]
        edges = [items.start for items in held] + [small.n_items]
        assert edges == [0, *(items.stop for items in held)]
        assert all(edge % exact.CHUNK["cpu"] == 0 or edge == small.n_items for edge in edges)
        chunks = [-(-(items.stop - items.start) // exact.CHUNK["cpu"]) for items in held]
        assert max(chunks) - min(chunks) <= 1


@pytest.mark.usefixtures("chunked")
def test_a_target_is_counted_against_the_score_of_its_chunk_on_whatever_process(small, monkeypatch):
    """Gathered columns come out one bit lower than ranges; ranks, and sampled ones, follow the ranges."""
    exactly = ranking.by_table

    def wobbly(*table):
        scorer, lowest = exactly(*table), torch.tensor(-torch.inf)
        return lambda items: scorer(items) if isinstance(items, slice) else torch.nextafter(scorer(items), lowest)

    model = Whole(small, 1)
    alone = ranks_of(model, small)
    monkeypatch.setattr(shelf, "by_table", wobbly)
    for found in run_on(2, lambda: ranks_of(model, small)):
        np.testing.assert_array_equal(found.rank, alone.rank)
        np.testing.assert_array_equal(found.sampled, alone.sampled)


@pytest.mark.usefixtures("chunked")
def test_a_score_that_is_not_finite_stops_all_processes(small):
    def share():
        model = Whole(small, 1)
        model.table[0] = torch.nan  # on the first process alone
        with pytest.raises(ValueError, match="not finite"):
            ranks_of(model, small)
        return True

    assert run_on(2, share) == [True, True]


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("shard", [True, False])
def test_asked_on_one_process_all_leave_together(small, shard):
    def share():
        calls = itertools.count()
        score, ranks = knobs.Score(shard_items=shard, batch_users=1), Ranks.here()
        with pytest.raises(Stopped):
            scoring.rank_split(
                Whole(small, 1), small, "test", score, ranks, CPU, stop=lambda: next(calls) == 2 and ranks.rank == 1
            )
        return next(calls)

    assert run_on(2, share) == [3, 3]


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("model", ["sasrec", "frellm"], indirect=True)
@pytest.mark.parametrize("only", [False, True], ids=["all", "among"])
def test_lists_are_those_of_one_process_to_the_last_bit(small, model, only):
    among = torch.arange(3, small.n_items, 2) if only else None
    alone = lists_of(model, small, shard=False, among=among)
    for size in (1, 2, 3):
        for shard in (True, False):
            for found in run_on(size, lambda shard=shard: lists_of(model, small, shard=shard, among=among)):
                assert all(torch.equal(*pair) for pair in zip(found, alone, strict=True))


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("levels", [0, 1, 100])
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("only", [None, [4, 5, 70, 148]], ids=["all", "among"])
def test_lists_equal_brute_force_and_of_equal_scores_the_lower_id_comes_first(small, levels, mask, only):
    model, k = Whole(small, levels), 9
    scores = (model.states @ model.table.T).numpy()
    wanted = []
    for u in range(small.n_users):
        had = set(small.item[small.start[u] : small.start[u + 1]].tolist()) if mask else set()
        left = [i for i in (range(small.n_items) if only is None else only) if i not in had]
        best = sorted(left, key=lambda i: (-scores[u, i], i))[:k]
        width = min(k, small.n_items if only is None else len(only))
        wanted.append([(i, scores[u, i]) for i in best] + [(-1, -np.inf)] * (width - len(best)))
    among = None if only is None else torch.tensor(only)
    for size in (2, 3):
        for found in run_on(size, lambda: lists_of(Whole(small, levels), small, k, among=among, mask_history=mask)):
            np.testing.assert_array_equal(np.stack(found, 2), wanted)


@pytest.mark.parametrize("name", ["popularity", "item_knn", "markov", "tiger", "tone"])
def test_models_without_a_table_are_refused_at_once(name):
    with pytest.raises(
        ValueError, match=r"score\.shard_items=true is for models that score by a table: sasrec, frellm"
    ):
        cfg.load([f"model.name={name}", "score.shard_items=true"])
