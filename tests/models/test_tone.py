"""TIGER against Hugging Face's T5; TONE's parts; searching the catalogue."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ranks import run_on
from t5 import fed, hugging_face
from tones import OFF, SIZES, SMALL, catalogue, histories, tone
from torch.testing import assert_close

from distrec import knobs
from distrec.data.batches import Batch
from distrec.data.item_codes import ItemCodes
from distrec.engine.evaluation import scoring
from distrec.models.blocks import Agf, Attention, Crfa, Rpml, Stack
from distrec.models.tone import Tone
from distrec.runtime import Ranks

COMBINATIONS = [dict(zip(OFF, on, strict=True)) for on in itertools.product([False, True], repeat=3)]


def test_with_its_switches_off_it_is_t5_gradients_too():
    model, batch = tone(**OFF), histories()
    theirs, pairs = hugging_face(model)
    ids, mask, labels = fed(model, batch)
    out = theirs(input_ids=ids, attention_mask=mask, labels=labels)
    states, seen = model.encode(batch)
    there = mask.bool()
    assert_close(states[there], out.encoder_last_hidden_state[there], atol=1e-5, rtol=1e-5)
    logits = model.logits(states, seen, labels)
    assert_close(logits, out.logits, atol=1e-5, rtol=1e-5)
    loss = model(batch)
    assert_close(loss / 6, out.loss, atol=1e-6, rtol=1e-6)
    loss.backward()
    (out.loss * 6).backward()
    own, their = dict(model.named_parameters()), dict(theirs.named_parameters())
    for name, ours in pairs.items():
        assert_close(own[ours].grad, their[name].grad, atol=1e-5, rtol=1e-4)


def test_its_beams_are_those_of_generate():
    model, batch = tone(**OFF), histories()
    theirs, _ = hugging_face(model)
    ids, mask, _ = fed(model, batch)
    known = {tuple(row) for row in model.token_of.tolist()}
    start = {prefix: sorted({row[len(prefix)] for row in known if row[: len(prefix)] == prefix}) for n in range(4) for prefix in {row[:n] for row in known}}  # fmt: skip

    def allowed(_, sent):
        return start.get(tuple(sent.tolist()[1:]), [0])

    settings = {
        "num_beams": 20,
        "num_return_sequences": 10,
        "max_new_tokens": 4,
        "min_new_tokens": 4,
        "length_penalty": 0.0,
    }
    settings |= {"do_sample": False, "output_scores": True, "return_dict_in_generate": True, "eos_token_id": None}
    for decoding, more in (("constrained", {"prefix_allowed_tokens_fn": allowed}), ("free", {})):
        out = theirs.generate(input_ids=ids, attention_mask=mask, **settings, **more)
        tokens = out.sequences.view(6, 10, 5)[..., 1:]
        items, scores = model.search(batch, 10, decoding)
        assert_close(scores, out.sequences_scores.view(6, 10), atol=1e-4, rtol=1e-4)
        found = torch.where(items[..., None] >= 0, model.token_of[items.clamp(min=0)], 0)
        is_known = torch.tensor([[tuple(row) in known for row in rows] for rows in tokens.tolist()])
        assert torch.equal(items >= 0, is_known)
        assert torch.equal(found[is_known], tokens[is_known])


def test_a_beam_of_all_items_is_exhaustive_scoring():
    model, batch = tone(beams=60), histories(4)
    items, scores = model.search(batch, 60, "constrained")
    states, mask = model.encode(batch)
    whole = []
    for item in range(60):
        target = model.token_of[torch.full((4,), item)]
        log_p = model.logits(states, mask, target).log_softmax(2)
        whole.append(log_p.gather(2, target[..., None]).sum((1, 2)))
    likelihood = model.likelihood(batch, torch.arange(60).expand(4, -1))
    assert_close(likelihood, torch.stack(whole, 1), atol=1e-5, rtol=1e-5)
    wanted, order = torch.stack(whole, 1).sort(dim=1, descending=True)
    assert_close(scores, wanted, atol=1e-4, rtol=1e-5)
    assert torch.equal(items, order)


@pytest.mark.parametrize("switches", COMBINATIONS, ids=lambda on: "+".join(k for k, v in on.items() if v) or "t5")
def test_decoder_sees_no_later_code(switches):
    model, batch = tone(**switches, rpml_decoder=True), histories()
    states, mask = model.encode(batch)
    target = model.token_of[batch.targets[:, -1]]
    before = model.logits(states, mask, target)
    for level in range(4):
        changed = target.clone()
        changed[:, level] = 1 + (changed[:, level] + 3) % 20
        after = model.logits(states, mask, changed)
        assert_close(after[:, : level + 1], before[:, : level + 1], atol=0, rtol=0)
        assert level == 3 or not torch.allclose(after[:, level + 1 :], before[:, level + 1 :])


@pytest.mark.parametrize("switches", COMBINATIONS, ids=lambda on: "+".join(k for k, v in on.items() if v) or "t5")
def test_steps_of_the_search_are_the_decoder(switches):
    model, batch = tone(**switches, rpml_decoder=True, beams=60), histories(3)
    items, scores = model.search(batch, 5, "constrained")
    states, mask = model.encode(batch)
    for place in range(5):
        target = model.token_of[items[:, place]]
        log_p = model.logits(states, mask, target).log_softmax(2).gather(2, target[..., None]).sum((1, 2))
        assert_close(scores[:, place], log_p, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("users", [0, 4])
@pytest.mark.parametrize("switches", COMBINATIONS, ids=lambda on: "+".join(k for k, v in on.items() if v) or "t5")
def test_scores_depend_on_neither_padding_nor_company_nor_what_stands_at_pads(switches, users):
    model, batch = tone(**switches, user_tokens=users), histories(5, longest=9)
    items, scores = model.search(batch, 10, "constrained")
    longer = {name: F.pad(getattr(batch, name), (11, 0)) for name in ("is_item", "targets", "is_target")}
    padded = replace(batch, items=F.pad(batch.items, (11, 0), value=7), **longer)
    strange = replace(batch, items=torch.where(batch.is_item, batch.items, 3))
    for other in (padded, strange):
        same, close = model.search(other, 10, "constrained")
        assert torch.equal(same, items)
        assert_close(close, scores, atol=1e-4, rtol=1e-4)
    for row in range(5):
        own = slice(row, row + 1)
        length = int(batch.is_item[row].sum())
        alone = Batch(batch.user[own], batch.items[own, -length:], batch.is_item[own, -length:], batch.targets[own, -length:], batch.is_target[own, -length:])  # fmt: skip
        same, close = model.search(alone, 10, "constrained")
        assert torch.equal(same, items[own])
        assert_close(close, scores[own], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [0, 1, 2])
@pytest.mark.parametrize("switches", [OFF, {}], ids=["tiger", "tone"])
def test_short_histories_give_finite_scores(length, switches):
    model, batch = tone(**switches), histories(3)
    batch = replace(batch, is_item=torch.arange(20).expand(3, -1) >= 20 - length)
    assert model(batch).isfinite()
    assert model.search(batch, 5, "constrained")[1].isfinite().all()


@pytest.mark.parametrize("switches", COMBINATIONS, ids=lambda on: "+".join(k for k, v in on.items() if v) or "t5")
def test_without_a_history_losses_and_gradients_are_finite(switches):
    model, batch = tone(**switches), histories(3)
    model(replace(batch, is_item=torch.zeros_like(batch.is_item))).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("switches", [OFF, {}], ids=["tiger", "tone"])
def test_of_a_long_history_the_latest_items_are_read(switches):
    model, batch = tone(**switches, max_len=5), histories()
    fields = ("items", "is_item", "targets", "is_target")
    latest = replace(batch, **{name: getattr(batch, name)[:, -5:] for name in fields})
    assert_close(model.encode(batch)[0], model.encode(latest)[0])
    earlier = replace(batch, items=torch.where(torch.arange(20) < 15, (batch.items + 1) % 60, batch.items))
    assert_close(model.encode(batch)[0], model.encode(earlier)[0])


@pytest.mark.parametrize(("place", "crfa"), [("before", True), ("replace", True), ("replace", False)])
def test_m_stands_in_the_frequencies_where_there_are_any(place, crfa):
    model = tone(crfa=crfa, crfa_place=place)
    if model.encoder is not None:
        assert all((layer.attention.rpml is None) == crfa for layer in model.encoder.layers)
    for stack in (model.crfa.real, model.crfa.imaginary) if crfa else ():
        assert all(layer.attention.rpml is not None for layer in stack.layers)
    assert (model.encoder is None) == (crfa and place == "replace")


@pytest.mark.parametrize("length", [8, 9])
def test_what_frequencies_give_back_is_added_as_it_is(length):
    """Through maps that change nothing: x + x; with the imaginary part left out: x and its even half, which is real."""
    crfa = Crfa(length, 4, "bins", (Stack([], None), Stack([], None)))
    for layer in crfa.into:
        torch.nn.init.eye_(layer.weight)
    x = torch.randn(2, length, 4)
    assert_close(crfa(x), 2 * x)
    torch.nn.init.zeros_(crfa.into[1].weight)
    assert_close(crfa(x), x + (x + x.flip(1).roll(1, 1)) / 2)
    torch.nn.init.eye_(crfa.into[1].weight)
    torch.nn.init.zeros_(crfa.into[0].weight)
    assert_close(crfa(x), x + (x - x.flip(1).roll(1, 1)) / 2)


def test_bins_are_told_apart_by_an_embedding_of_their_place():
    model = tone(max_len=4, bin_embedding=True)
    stack, x = model.crfa.real, torch.randn(2, 9, 16)
    assert stack.places.weight.shape == (9, 16)
    plain = Stack(list(stack.layers), stack.bias)
    assert_close(stack(x), plain(x + stack.places.weight))
    assert_close(stack(x[:, :5]), plain(x[:, :5] + stack.places.weight[:5]))
    assert tone(max_len=4).crfa.real.places is None


def test_the_width_of_agf_stays_between_its_bounds():
    agf = Agf(3.0, 7, 1, literal=False)
    for raw, wanted in ((50.0, 7.0), (-50.0, 0.3), (2.0, math.log1p(math.exp(2.0)))):
        torch.nn.init.constant_(agf.raw_sigma, raw)
        assert float(agf.sigma) == pytest.approx(wanted, rel=1e-6)


def test_crfa_has_41_bins_for_80_positions_and_adds_nothing_at_zero_weights():
    model, batch = tone(max_len=20), histories()
    crfa = model.crfa
    x = torch.randn(2, 80, 16)
    assert crfa(x).shape == x.shape
    assert Crfa.bins(80) == 41
    assert crfa.real.layers[0].attention.rpml.matrix.shape == (41, 41)
    for layer in crfa.into:
        torch.nn.init.zeros_(layer.weight)
    assert_close(crfa(x), x, atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="79 positions, the frequencies are those of 80"):
        crfa(x[:, 1:])
    assert model.encode(batch)[0].shape == (6, 80, 16)


@pytest.mark.parametrize("tokens", ["bins", "flat", "channels"])
def test_every_reading_of_crfas_tokens_runs_and_is_zero_at_zero(tokens):
    model = tone(max_len=4, crfa_tokens=tokens, crfa_place="before", bin_embedding=False)
    batch = histories(3, longest=4)
    model(batch).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    for layer in model.crfa.into:
        torch.nn.init.zeros_(layer.weight)
    x = torch.randn(2, 16, 16)
    assert_close(model.crfa(x), x, atol=1e-6, rtol=1e-6)


def test_a_spectrum_changes_every_position_and_comes_back():
    for length in (80, 79):
        x = torch.randn(2, length, 8)
        assert_close(torch.fft.irfft(torch.fft.rfft(x, dim=1), n=length, dim=1), x)


@pytest.mark.parametrize("step", [1, 4])
def test_agf_leaves_a_constant_alone_next_to_pads_too(step):
    agf = Agf(3.0, 7, step, literal=False)
    is_valid = (torch.arange(80) >= 60).expand(2, -1)
    x = torch.full((2, 80, 5), 2.5) * is_valid[..., None]
    assert_close(agf(x, is_valid), x)
    noisy = x + 100 * ~is_valid[..., None]
    assert_close(agf(noisy, is_valid), x)


def test_agf_becomes_the_identity_as_sigma_shrinks_and_is_scipys_gaussian():
    from scipy.ndimage import correlate1d

    x, every = torch.randn(1, 40, 3), torch.ones(1, 40, dtype=torch.bool)
    assert_close(Agf(0.3, 7, 1, literal=False)(x, every), x, atol=0.02, rtol=0.02)
    weights = np.exp(-(np.arange(-3, 4) ** 2) / 18)
    wanted = correlate1d(x[0].numpy(), weights, axis=0, mode="constant")
    total = correlate1d(np.ones((40, 3)), weights, axis=0, mode="constant")
    assert_close(Agf(3.0, 7, 1, literal=False)(x, every)[0], torch.from_numpy(wanted / total).float())
    literal = torch.from_numpy(wanted / (np.sqrt(2 * np.pi) * 3)).float()
    assert_close(Agf(3.0, 7, 1, literal=True)(x, every)[0], literal)
    assert weights.sum() / (np.sqrt(2 * np.pi) * 3) == pytest.approx(0.759, abs=1e-3)  # METHODS 2.3


def test_agf_over_items_keeps_the_codes_of_an_item_apart():
    agf, every = Agf(3.0, 7, 4, literal=False), torch.ones(1, 40, dtype=torch.bool)
    x = torch.zeros(1, 40, 2)
    x[0, 20] = 1  # code 0 of item 5
    touched = agf(x, every)[0].abs().sum(1).nonzero()[:, 0]
    assert touched.tolist() == [8, 12, 16, 20, 24, 28, 32]


def test_rpml_rows_sum_to_one_and_alpha_zero_is_plain_attention():
    scores = torch.randn(2, 3, 41, 41)
    scores[..., :5] = -torch.inf
    rpml = Rpml(41, "post_l1", 0.0, 0.1, 0.4, True, False)
    weights = rpml(scores)
    assert_close(weights.sum(-1), torch.ones(2, 3, 41))
    assert bool((weights >= 0).all())
    assert bool((weights[..., :5] == 0).all())
    x = torch.randn(2, 41, 16)
    for mode in ("post_l1", "post", "pre"):
        plain = Attention(16, 2, 8, 0.0)
        learnt = Attention(16, 2, 8, 0.0, Rpml(41, mode, 0.0, 0.1, 0.0, True, False))
        learnt.load_state_dict(plain.state_dict(), strict=False)
        assert_close(learnt(x, *learnt.keys_values(x), None), plain(x, *plain.keys_values(x), None))


def test_a_centred_m_takes_no_weight_below_zero():
    """softplus(M) − ln 2 of a low M is −ln 2: what attention has less of is cut off at zero, and rows still sum to one."""
    scores = 4 * torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    rpml = Rpml(9, "post_l1", -8.0, 0.1, 0.4, True, True)
    weights = rpml(scores)
    plain = (scores.softmax(-1) + rpml.added(9, 9)).clamp(min=0)
    assert (plain == 0).any()
    assert bool(plain.any(-1).all())
    assert_close(weights, plain / plain.sum(-1, keepdim=True))
    assert_close(weights.sum(-1), torch.ones(2, 3, 9))


def test_an_m_that_starts_low_lets_the_attention_through():
    scores = torch.randn(1, 1, 41, 41)
    low = Rpml(41, "post_l1", -20.0, 0.1, 0.4, True, False)
    assert_close(low(scores), scores.softmax(-1), atol=1e-6, rtol=1e-5)
    assert Rpml(41, "post_l1", -4.0, 0.1, 0.4, True, False).matrix.mean().item() == pytest.approx(-4, abs=0.01)


def test_rpml_keeps_8_percent_of_the_attention_at_alpha_04():
    rpml = Rpml(41, "post_l1", 0.0, 0.01, 0.4, True, False)
    scores = torch.full((1, 1, 41, 41), -100.0)
    scores[..., 0] = 0
    assert float(rpml(scores)[..., 0].mean()) == pytest.approx(0.081 + 0.919 / 41, abs=2e-3)  # METHODS 2.3
    centred = Rpml(41, "post_l1", 0.0, 0.0, 0.4, True, True)
    assert_close(centred(scores), scores.softmax(-1))


def test_every_part_learns():
    model, batch = tone().train(), histories(32)
    model(batch).backward()
    for name in ("agf.raw_sigma", "crfa.into.0.weight", "crfa.real.layers.0.attention.rpml.matrix", "crfa.imaginary.layers.1.attention.rpml.raw_alpha"):  # fmt: skip
        assert float(dict(model.named_parameters())[name].grad.abs().sum()) > 0


def test_a_search_widens_to_what_is_asked_and_leaves_places_empty():
    items, scores = tone().search(histories(), 70, "constrained")
    assert [sorted(row[:60].tolist()) for row in items] == [list(range(60))] * 6
    assert bool((items[:, 60:] == -1).all())
    assert bool((scores[:, 60:] == -torch.inf).all())


def test_it_learns_a_rule():
    """The next item is the last one plus one: better than chance by far after a few steps."""
    torch.manual_seed(0)
    model = Tone(knobs.Tone(**SMALL, dropout=0.0, max_len=4), catalogue())
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        items = torch.randint(60, (64, 4))
        batch = Batch(
            torch.arange(64),
            items,
            torch.ones(64, 4, dtype=torch.bool),
            (items + 1) % 60,
            torch.ones(64, 4, dtype=torch.bool),
        )
        optimiser.zero_grad()
        (model(batch) / 64).backward()
        optimiser.step()
    model.eval()
    hits = model.search(batch, 1, "constrained")[0][:, 0] == batch.targets[:, -1]
    assert float(hits.double().mean()) > 0.3


@pytest.mark.parametrize("zero_pads", [True, False])
def test_padding_adds_nothing_to_the_spectrum(zero_pads):
    model, batch = tone(agf=False, zero_pads=zero_pads), histories(5, longest=9)
    before = model.encode(batch)[0]
    with torch.no_grad():
        model.shared.weight[0] += 1
    after = model.encode(batch)[0]
    assert torch.equal(before, after) == zero_pads


def test_rows_without_a_target_count_nothing():
    model, batch = tone(), histories(6)
    counts = torch.tensor([True, False, True, True, False, True])
    batch = replace(batch, is_target=batch.is_target & counts[:, None])
    kept = Batch(*(getattr(batch, name)[counts] for name in ("user", "items", "is_item", "targets", "is_target")))
    assert_close(model(batch), model(kept))


def test_ranks_are_the_same_on_any_number_of_processes_and_in_any_batch(small):
    torch.manual_seed(0)
    number = torch.arange(small.n_items)
    codes = ItemCodes.of(torch.stack([number // 64, number // 8 % 8, number % 8, 0 * number], 1), SIZES)
    model = Tone(knobs.Tone(**SMALL), codes).eval()

    def ranks(**score):
        found = scoring.rank_split(
            model, small, "test", knobs.Score(**score), Ranks.here(), torch.device("cpu"), thorough=True
        )
        return [
            np.stack(
                [
                    *found.standing,
                    *found.sampled,
                    found.invalid,
                    *(row for each in found.others.values() for row in each),
                ]
            )
        ]

    alone = ranks()
    assert np.isfinite(alone[0]).any()
    for other in (ranks(batch_users=1), ranks(batch_users=4000), *run_on(2, ranks), *run_on(4, ranks)):
        for ours, theirs in zip(alone, other, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("switches", [OFF, {}, {"agf_axis": "items"}], ids=["tiger", "tone", "items"])
def test_users_have_a_token_of_their_own_and_strangers_none(switches):
    model, batch = tone(**switches, user_tokens=4), histories(6)
    assert model.encode(batch)[0].shape[1] == 81
    one = replace(batch, **{name: getattr(batch, name)[:1].expand(6, -1) for name in ("items", "is_item")})
    scores = model.search(one, 5, "constrained")[1]
    assert torch.equal(scores[:2], scores[4:])  # users 4 and 5 share the tokens of 0 and 1
    assert not torch.allclose(scores[0], scores[1])
    stranger = replace(batch, user=torch.full((6,), -1))
    before = model.search(stranger, 5, "constrained")[1]
    with torch.no_grad():
        model.users.weight.add_(1)
    assert torch.equal(model.search(stranger, 5, "constrained")[1], before)
    if switches == OFF:
        plain = tone(**OFF)
        plain.load_state_dict(model.state_dict(), strict=False)
        assert_close(plain.search(batch, 5, "constrained")[1], before)
