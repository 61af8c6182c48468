"""Attention weights against the layers' own outputs, with the values and the output projection of the layer."""

import pytest
import torch
from decoders import CLASSES, frellm, saved
from tones import OFF, histories, tone
from torch.testing import assert_close

from distrec import knobs
from distrec.models.attention import observe
from distrec.models.baselines.counting import Popularity
from distrec.models.blocks import Attention
from distrec.models.sasrec import Block, SasRec

TONES = {
    "tone": {},
    "tiger": OFF,
    "no M": {"rpml": False},
    "M on tokens": {"crfa": False, "agf": False},
    "raw": {"rpml_mode": "post"},
    "pre": {"rpml_mode": "pre"},
    "both": {"crfa_place": "before"},
    "centred": {"rpml_centred": True},
    "channels": {"crfa_tokens": "channels"},
    "users": {"user_tokens": 5, "crfa": False},
}


def watched(model, kind):
    """name → (arguments, output) of modules of a kind, filled by a pass."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda _, args, out, name=name: found.__setitem__(name, (args, out)))
    return found


@pytest.mark.parametrize("settings", TONES.values(), ids=TONES)
def test_weights_of_an_encoder_of_codes_give_its_outputs(settings):
    model = tone(**settings)
    calls = watched(model, Attention)
    seen = observe(model, histories())
    assert [each.name for each in seen] == list(calls)
    assert len(seen) == 2 * (1 if settings.get("crfa") is False else 3 if "crfa_place" in settings else 2)
    for each in seen:
        layer, ((_, _, values, _), out) = model.get_submodule(each.name), calls[each.name]
        assert_close(layer.o((each.weights @ values).transpose(1, 2).flatten(2)), out, atol=1e-5, rtol=1e-5)
        if settings.get("rpml_mode") != "post":
            assert_close(each.weights.sum(-1), torch.ones_like(each.weights[..., 0]), atol=1e-5, rtol=0)
        assert (each.weights >= 0).all()
        assert (each.before is not None) == (layer.rpml is not None)
        hidden = ~each.is_place[:, None, None].expand_as(each.weights)
        assert each.weights[hidden].count_nonzero() == 0
        if each.name.startswith("crfa"):
            assert each.is_place.all()
            continue
        tokens = histories().is_item.repeat_interleave(4, 1)
        assert torch.equal(each.is_place[:, : tokens.shape[1]], tokens)


def test_the_share_that_attention_keeps_is_what_its_row_is_divided_by():
    for each in observe(tone(), histories()):
        added = each.weights / each.kept[..., None] - each.before
        assert (added >= -1e-6).all()
        assert_close(added, added[:1, :1].expand_as(added), atol=1e-5, rtol=1e-4)  # the same matrix for all
        assert_close(added.sum(-1), 1 / each.kept - 1, atol=1e-4, rtol=1e-4)
        assert 0.02 < each.kept.mean() < 0.2  # METHODS 2.3: .081 at n=41, α=.4
    assert all(each.kept is None for each in observe(tone(rpml_mode="pre"), histories()))


def sasrec():
    return SasRec(knobs.SasRec(d_model=16, n_heads=2, max_len=20), 60).eval()


def test_weights_of_a_sasrec_give_its_outputs_and_stay_causal():
    model, batch = sasrec(), histories()
    calls = watched(model, Block)
    seen = observe(model, batch)
    assert [each.name for each in seen] == ["blocks.0", "blocks.1"]
    for each in seen:
        block, ((x, _), out) = model.get_submodule(each.name), calls[each.name]
        values = block.qkv(block.norm_attention(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)[2]
        x = x + block.out((each.weights @ values).transpose(1, 2).flatten(2))
        fed = block.narrow(torch.nn.functional.gelu(block.wide(block.norm_feed(x))))
        assert_close(x + fed, out, atol=1e-5, rtol=1e-5)
        assert each.weights.triu(1).count_nonzero() == 0
        places = each.is_place[:, None, :, None] & ~each.is_place[:, None, None]
        assert each.weights[places.expand_as(each.weights)].count_nonzero() == 0


@pytest.mark.parametrize("tune", ["frozen", "lora"])
@pytest.mark.parametrize("kind", CLASSES)
def test_a_language_model_tells_its_own_and_is_left_as_it_was(tmp_path, kind, tune):
    model, batch = frellm(saved(tmp_path, kind), tune=tune).eval(), histories()
    attentions = [layer.self_attn for layer in model.backbone.layers]
    usual, inputs = model.user_states(batch), []
    handles = [each.register_forward_hook(lambda _, __, kw, out: inputs.append((kw["hidden_states"], out[0])), with_kwargs=True) for each in attentions]  # fmt: skip
    seen = observe(model, batch)
    for handle in handles:
        handle.remove()
    assert len(seen) == 3
    for each, attention, (x, out) in zip(seen, attentions, inputs, strict=True):
        values = attention.v_proj(x).unflatten(-1, (2, -1)).transpose(1, 2).repeat_interleave(2, 1)
        assert_close(attention.o_proj((each.weights @ values).transpose(1, 2).flatten(2)), out, atol=1e-5, rtol=1e-5)
        assert_close(each.weights.sum(-1), torch.ones_like(each.weights[..., 0]))
        assert each.weights.triu(1).count_nonzero() == 0
        places = each.is_place[:, None, :, None] & ~each.is_place[:, None, None]
        assert each.weights[places.expand_as(each.weights)].count_nonzero() == 0
    assert model.backbone.decoder.config._attn_implementation == "sdpa"
    assert not any(each._forward_pre_hooks or each._forward_hooks for each in attentions)
    assert torch.equal(model.user_states(batch), usual)
    with torch.no_grad():
        last = []
        model.backbone.register_forward_hook(lambda _, __, out: last.append(out))
        model.user_states(batch)
        observe(model, batch)
    assert_close(last[0][batch.is_item], last[1][batch.is_item], atol=1e-4, rtol=0)


def test_what_counts_does_not_attend(small):
    assert observe(Popularity(small), histories()) == []
