"""SASRec: no look ahead, blind to padding, losses against plain arithmetic."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distrec import knobs
from distrec.data import batches
from distrec.models.build import build
from distrec.models.sasrec import Block


@pytest.fixture
def model(small):
    return build(knobs.SasRec(d_model=16, n_layers=2, n_heads=2, max_len=50), small, 0).eval()


def a_batch(small, rows=slice(0, 16)):
    samples = batches.training(small, "sequences", 50)
    return batches.collate(small, samples, np.arange(len(samples))[rows])


def test_changing_an_item_leaves_earlier_states_alone(model, small):
    batch = a_batch(small)
    before = model.states(batch.items, batch.is_item)
    for t in (-1, -2, -4):
        changed = batch.items.clone()
        changed[:, t] = (changed[:, t] + 1) % small.n_items
        after = model.states(changed, batch.is_item)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t:], before[:, t:])


def test_a_gradient_reaches_no_later_item(model, small):
    batch = a_batch(small, slice(0, 1))
    x = torch.randn(1, batch.items.shape[1], 16, requires_grad=True)
    n = x.shape[1]
    sees = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
    y = x
    for block in model.blocks:
        y = block(y, sees)
    y[0, n // 2].sum().backward()
    assert (x.grad[0, n // 2 + 1 :] == 0).all()
    assert (x.grad[0, : n // 2 + 1] != 0).any()


def test_values_at_padding_change_nothing(model, small):
    batch = a_batch(small)
    poisoned = torch.where(batch.is_item, batch.items, torch.full_like(batch.items, 7))
    real = batch.is_item
    assert torch.equal(model.states(poisoned, real)[real], model.states(batch.items, real)[real])


def test_a_user_scores_the_same_alone_in_company_and_with_50_more_pads(model, small):
    batch = a_batch(small)
    with torch.no_grad():
        together = model.scorer(batch)(slice(0, model.n_items))
        for row in (0, 5, 15):
            real = batch.is_item[row]
            alone = batches.Batch(
                batch.user[row : row + 1],
                batch.items[row : row + 1][:, real],
                real[real][None],
                batch.targets[row : row + 1][:, real],
                real[real][None],
            )
            torch.testing.assert_close(
                model.scorer(alone)(slice(0, model.n_items))[0], together[row], atol=1e-5, rtol=0
            )
            room = min(50, model.max_len - alone.items.shape[1])
            wider = batches.Batch(
                alone.user,
                F.pad(alone.items, (room, 0)),
                F.pad(alone.is_item, (room, 0)),
                F.pad(alone.targets, (room, 0)),
                F.pad(alone.is_target, (room, 0)),
            )
            torch.testing.assert_close(
                model.scorer(wider)(slice(0, model.n_items))[0], together[row], atol=1e-5, rtol=0
            )


def test_an_empty_history_gives_finite_scores(model, small):
    empty = batches.Batch(
        torch.zeros(1, dtype=torch.long),
        torch.zeros(1, 1, dtype=torch.long),
        torch.zeros(1, 1, dtype=torch.bool),
        torch.zeros(1, 1, dtype=torch.long),
        torch.ones(1, 1, dtype=torch.bool),
    )
    assert torch.isfinite(model.scorer(empty)(slice(0, model.n_items))).all()


def test_the_full_softmax_loss_is_minus_the_log_of_the_target_s_share(model, small):
    batch = a_batch(small)
    states = model.states(batch.items, batch.is_item)
    total = 0.0
    for b, t in batch.is_target.nonzero().tolist():
        logits = [float(states[b, t] @ e) for e in model.item.weight]
        total += math.log(sum(math.exp(x) for x in logits)) - logits[batch.targets[b, t]]
    assert float(model(batch)) == pytest.approx(total, rel=1e-4)


def test_the_binary_loss_redraws_what_the_user_has_once_and_then_leaves_it_out(small, monkeypatch):
    model = build(knobs.SasRec(loss="bce", negatives=1, d_model=16, max_len=50), small, 0).eval()
    batch = a_batch(small, slice(3, 4))
    owned = set(batch.items[batch.is_item].tolist()) | set(batch.targets[batch.is_target].tolist())
    mine, free = min(owned), min(set(range(small.n_items)) - owned)
    n = int(batch.is_target.sum())

    def loss(first, second):
        monkeypatch.setattr(
            torch, "randint", lambda *_, **__: torch.tensor([first, second])[:, None, None].expand(2, n, 1)
        )
        return float(model(batch))

    states = model.states(batch.items, batch.is_item)[batch.is_target]
    positives = (states * model.item(batch.targets[batch.is_target])).sum(-1)
    positive = float(F.softplus(-positives).sum())
    negative = float(F.softplus(states @ model.item.weight[free]).sum())
    assert loss(mine, mine) == pytest.approx(positive, rel=1e-5)
    assert loss(mine, free) == pytest.approx(positive + negative, rel=1e-5)
    assert loss(free, mine) == pytest.approx(positive + negative, rel=1e-5)


def test_a_negative_is_nothing_that_the_user_has_as_an_input_or_as_a_target(small, monkeypatch):
    from distrec.models import sasrec

    model = build(knobs.SasRec(loss="bce", negatives=1, d_model=16, max_len=50), small, 0).eval()
    batch = a_batch(small)
    seen = []
    monkeypatch.setattr(sasrec, "_among", lambda drawn, owned: (seen.append(owned), drawn < 0)[1])
    model(batch)
    rows = batch.is_target.nonzero()[:, 0].tolist()
    assert len(rows) == len(seen[0])
    for n, row in enumerate(rows):
        items, targets = batch.items[row][batch.is_item[row]], batch.targets[row][batch.is_target[row]]
        assert {*seen[0][n].tolist()} - {-1} == {*items.tolist(), *targets.tolist()}


def test_the_first_block_reads_items_times_the_root_of_the_width_and_places_from_the_right(model, small):
    batch, seen = a_batch(small), []
    model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.states(batch.items, batch.is_item)
    wanted = 4 * model.item.weight[batch.items] + model.position.weight[-batch.items.shape[1] :]
    torch.testing.assert_close(seen[0], wanted * batch.is_item[..., None])


def test_negatives_that_collide_are_left_out():
    from distrec.models.sasrec import _among

    drawn, owned = torch.tensor([[1, 5], [2, 9]]), torch.tensor([[5, 6], [-1, 3]])
    assert _among(drawn, owned).tolist() == [[False, True], [False, False]]


def test_attention_equals_torch_s_own():
    ours = Block(16, 4, 0.0).eval()
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    x = torch.randn(3, 7, 16)
    sees = torch.ones(7, 7, dtype=torch.bool).tril()
    normed = ours.norm_attention(x)
    attended = x + theirs(normed, normed, normed, attn_mask=~sees, need_weights=False)[0]
    expected = attended + ours.narrow(F.gelu(ours.wide(ours.norm_feed(attended))))
    torch.testing.assert_close(ours(x, sees[None, None]), expected)


def test_rank_lists_the_highest_scores_and_the_lower_id_of_equal_ones(model, small, monkeypatch):
    from distrec.models import ranking

    batch = a_batch(small)
    with torch.no_grad():
        model.item.weight[10:20] = model.item.weight[10]
        scores = model.scorer(batch)(slice(0, model.n_items))
        expected = scores.argsort(dim=1, descending=True, stable=True)[:, :12]
        for chunk in (7, 64, 10_000):
            monkeypatch.setattr(ranking, "CHUNK", chunk)
            found = model.rank(batch, 12)
            assert torch.equal(scores.gather(1, found), scores.gather(1, expected))
    ties, _ = ranking.top_items(lambda items: torch.zeros(2, 30)[:, items], slice(0, 30), 5)
    assert ties.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_weights_are_drawn_from_the_seed_alone(small):
    config = knobs.SasRec(d_model=16)
    one = build(config, small, 3).state_dict()
    torch.randn(10)
    two, other = build(config, small, 3).state_dict(), build(config, small, 4).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["item.weight"], other["item.weight"])
