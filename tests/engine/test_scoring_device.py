"""Ranking and listing on a GPU: the ranks and lists of the CPU, and the host waits once a group or batch, not once a block."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from pretended import Gpu
from tones import SIZES, SMALL

from distrec import knobs
from distrec.data import histories
from distrec.data.item_codes import ItemCodes
from distrec.engine.evaluation import listing, scoring
from distrec.engine.evaluation.precision import exact_products
from distrec.jobs import recommend
from distrec.models import ranking
from distrec.models.baselines.counting import ItemKnn, Popularity
from distrec.models.build import build
from distrec.models.tone import Tone
from distrec.runtime import Ranks

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
BATCH = 32


def generative(small, config):
    number = torch.arange(small.n_items)
    codes = ItemCodes.of(torch.stack([number // 64, number // 8 % 8, number % 8, 0 * number], 1), SIZES)
    torch.manual_seed(0)
    return Tone(config, codes).eval()


@pytest.fixture(scope="module", params=["sasrec", "tone"])
def model(request, small):
    if request.param == "sasrec":
        return build(knobs.SasRec(d_model=16, max_len=20), small, 0).eval()
    return generative(small, knobs.Tone(**{**SMALL, "n_layers": 1}, user_tokens=3))


def on_gpu(model, work):
    """(result of work(model), host waits, faults) after the model moved to the pretended GPU and built its index."""
    with Gpu() as gpu:
        there = copy.deepcopy(model).to(CUDA)
        if isinstance(there, Tone):
            there.index(CUDA)
        gpu.waits.clear()
        result = work(there, CUDA)
        return result, Counter(gpu.waits), gpu.faults


@pytest.mark.parametrize("mask", [True, False])
def test_ranks_are_those_of_the_cpu_and_a_gpu_is_read_once_a_group(small, model, mask, monkeypatch):
    n_blocks, reads = (8, 3) if isinstance(model, ranking.TableModel) else (2, 1)  # twice counted where bits differ
    monkeypatch.setattr(scoring, "BLOCK", -(-len(small.targets("test")[0]) // n_blocks))

    def work(model, device):
        score = knobs.Score(mask_history=mask)
        return scoring.rank_split(model, small, "test", score, Ranks(), device, thorough=True)

    found, waits, faults = on_gpu(model, work)
    expected = work(model, CPU)
    assert not faults
    assert waits.total() <= reads, waits
    np.testing.assert_array_equal(found.rank, expected.rank)
    np.testing.assert_array_equal(found.sampled, expected.sampled)
    assert found.others.keys() == expected.others.keys()
    for name, values in found.others.items():
        np.testing.assert_array_equal(values, expected.others[name])


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("only", [False, True], ids=["all", "among"])
def test_lists_are_those_of_the_cpu_and_a_gpu_is_read_once_a_batch(small, model, mask, only):
    among = torch.arange(3, small.n_items, 2) if only else None
    asked = histories.known(small)

    def work(model, device):
        score = knobs.Score(mask_history=mask, batch_users=BATCH)
        return recommend.listed(model, asked, 9, among, score, small, Ranks())

    (items, scores), waits, faults = on_gpu(model, work)
    expected = work(model, CPU)
    index = (2 if isinstance(model, ranking.TableModel) else 13) if only else 0  # built for the items of `among`
    assert not faults
    assert waits.total() <= -(-len(asked) // BATCH) + index, waits
    assert not items.is_cuda
    assert torch.equal(items, expected[0])
    assert torch.equal(scores, expected[1])


@pytest.mark.parametrize("kind", [Popularity, lambda data: ItemKnn(data, 20)], ids=["popularity", "knn"])
def test_a_model_without_weights_counts_on_the_cpu_and_says_so(small, kind, capsys):
    model = kind(small)

    def work(model, device):
        return scoring.rank_split(model, small, "test", knobs.Score(), Ranks(), device)

    found, waits, faults = on_gpu(model, work)
    assert "counts on the CPU" in capsys.readouterr().err
    assert not waits
    assert not faults
    np.testing.assert_array_equal(found.rank, work(model, CPU).rank)
    assert "counts on the CPU" not in capsys.readouterr().err


class Fixed(torch.nn.Module):
    """Scores that depend on the user alone; notes whether TF32 was on."""

    max_len = 20

    def __init__(self, scores):
        super().__init__()
        self.scores, self.tf32 = torch.nn.Parameter(scores), set()

    def scorer(self, batch):
        self.tf32.add(torch.backends.cuda.matmul.allow_tf32)
        own = self.scores[batch.user]
        return lambda items: own[:, items].clone()


@pytest.fixture
def tf32():
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.usefixtures("tf32")
def test_scores_are_float32_whatever_was_trained(small):
    model = Fixed(torch.rand(small.n_users, small.n_items))
    scoring.rank_split(model, small, "test", knobs.Score(), Ranks(), CPU)
    recommend.listed(model, histories.known(small), 3, None, knobs.Score(), small, Ranks())
    assert model.tf32 == {False}
    assert torch.backends.cuda.matmul.allow_tf32


@pytest.mark.usefixtures("tf32")
def test_tf32_is_what_it_was_after_a_failure_too(small):
    with pytest.raises(ValueError, match="not finite"):
        scoring.rank_split(
            Fixed(torch.full((small.n_users, small.n_items), torch.nan)), small, "test", knobs.Score(), Ranks(), CPU
        )
    assert torch.backends.cuda.matmul.allow_tf32
    with exact_products(), exact_products():
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32


def test_scores_that_are_not_finite_stop_a_gpu_too(small):
    scores = torch.zeros(small.n_users, small.n_items)
    scores[5, 7] = torch.nan
    with Gpu():
        model = Fixed(scores).to(CUDA)
        with pytest.raises(ValueError, match="not finite"):
            scoring.rank_split(model, small, "test", knobs.Score(mask_history=False), Ranks(), CUDA)


@pytest.mark.parametrize("n", [0, 1, 40])
def test_is_among_is_isin(n):
    values = torch.randint(-1, 90, (7, 30))
    ascending = torch.randperm(80)[:n].sort()[0]
    assert torch.equal(ranking.is_among(values, ascending), torch.isin(values, ascending))


@pytest.mark.parametrize("within", [slice(0, 100), slice(15, 63), slice(40, 40)])
def test_places_by_chunk_are_those_of_each_chunk_on_either_device(within):
    rng = np.random.default_rng(0)
    places = [(rng.integers(9, size=n), rng.integers(100, size=n)) for n in (0, 200, 31)]
    with Gpu() as gpu:
        there = ranking.by_chunk(places, within, 7, CUDA)
        assert not gpu.waits
        assert all(part.is_cuda for group in there for pair in group for part in pair)
    assert len(there) == 3
    for groups in (there, ranking.by_chunk(places, within, 7, CPU)):
        for (rows, items), chunks in zip(places, groups, strict=True):
            lows = range(within.start, within.stop, 7)
            for low, (row, column) in zip(lows, chunks, strict=True):
                inside = (items >= low) & (items < min(low + 7, within.stop))
                expected = sorted(zip(rows[inside].tolist(), (items[inside] - low).tolist(), strict=True))
                assert sorted(zip(row.tolist(), column.tolist(), strict=True)) == expected


def test_lists_come_to_the_host_in_one_copy_to_the_last_bit():
    lists = [(torch.randint(-1, 2**40, (n, 5)), torch.randn(n, 5)) for n in (4, 1)]
    lists[0][1][0] = torch.tensor([-torch.inf, torch.inf, -0.0, 1e-45, 3e38])
    with Gpu() as gpu:
        there = [(items.to(CUDA), scores.to(CUDA)) for items, scores in lists]
        gpu.waits.clear()
        read = listing.on_host(there)
        assert gpu.waits.total() == 1
    for (items, scores), (expected, values) in zip(read, lists, strict=True):
        assert torch.equal(items, expected)
        assert torch.equal(scores.view(torch.int32), values.view(torch.int32))
