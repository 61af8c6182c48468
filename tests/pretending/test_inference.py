"""Ranking, searches, likelihoods and lists on the pretended GPU: the CPU's results, few host waits."""

import pytest
import tones
import torch
from pretended import GPU
from pretending import counts, limits

from distrec import knobs
from distrec.data import histories
from distrec.engine.evaluation import scoring
from distrec.jobs.recommend import listed
from distrec.models.build import build
from distrec.models.tone import Tone
from distrec.runtime import Ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pretending")


@pytest.mark.parametrize("name", limits.BLOCK)
def test_a_block_of_users_is_ranked_as_on_the_cpu_and_waits_rarely(small, folder, monkeypatch, name):
    make = counts.zoo(folder)[name][0]
    torch.manual_seed(0)
    model = make(small)
    here = scoring.rank_split(model, small, "valid", knobs.Score(bootstrap=0), Ranks(), torch.device("cpu"))
    with counts.device(monkeypatch) as gpu:
        waits, there = counts.ranking(gpu, small, model.to(GPU), monkeypatch)
        assert not gpu.faults, gpu.faults
    assert waits == limits.BLOCK[name], gpu.waits
    assert (here.rank == there.rank).mean() > 0.95  # rows in other batches round otherwise


@pytest.mark.parametrize("decoding", limits.LEVEL)
def test_a_level_of_a_search_waits_rarely(monkeypatch, decoding):
    with counts.device(monkeypatch) as gpu:
        few, many = (counts.search(gpu, decoding, n_levels) for n_levels in (4, 6))
        assert not gpu.faults, gpu.faults
    assert (many - few).total() / 2 == limits.LEVEL[decoding], many
    assert few.total() == limits.SEARCH[decoding], few


@pytest.mark.parametrize("config", [knobs.Tiger, knobs.Tone])
def test_searches_and_likelihoods_are_the_cpu_s(monkeypatch, config):
    torch.manual_seed(0)
    model = Tone(config(**counts.SMALL), counts.codes(60)).eval()
    batch = tones.histories(5)
    items = torch.arange(15).reshape(5, 3)
    here = [model.search(batch, 8, "constrained"), model.search(batch, 8, "free"), model.likelihood(batch, items)]
    with counts.device(monkeypatch) as gpu, torch.no_grad():
        model.to(GPU)
        batch, items = batch.to(GPU), items.to(GPU)
        there = [model.search(batch, 8, "constrained"), model.search(batch, 8, "free"), model.likelihood(batch, items)]
        assert all(tensor.is_cuda for tensor in (*there[0], *there[1], there[2]))
        assert not gpu.faults, gpu.faults
        for (a, b), (c, d) in zip(here[:2], there[:2], strict=True):
            assert torch.equal(a, c.cpu())
            torch.testing.assert_close(b, d.cpu())
        torch.testing.assert_close(here[2], there[2].cpu())


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("name", ["sasrec ce", "tiger", "frellm causal", "markov"])
def test_lists_are_the_cpu_s(small, folder, monkeypatch, name, mask):
    torch.manual_seed(0)
    model = build(knobs.Markov(), small, 0) if name == "markov" else counts.zoo(folder)[name][0](small)
    model.eval()
    score = knobs.Score(bootstrap=0, mask_history=mask, batch_users=50)
    users = histories.known(small)
    among = torch.arange(0, small.n_items, 2)
    with torch.no_grad():
        here = listed(model, users, 5, among, score, small, Ranks())[0]
        with counts.device(monkeypatch) as gpu:
            there = listed(model.to(GPU), users, 5, among, score, small, Ranks())[0]
            assert not gpu.faults, gpu.faults
            assert (here == there.cpu()).double().mean() > 0.99
