"""Hugging Face's T5 with the weights of a model whose switches are off."""

import itertools

from transformers import T5Config, T5ForConditionalGeneration


def hugging_face(model):
    """T5 with the weights of a model whose switches are off."""
    c = model.config
    theirs = T5ForConditionalGeneration(
        T5Config(
            vocab_size=model.n_tokens, d_model=c.d_model, d_kv=c.d_kv, d_ff=c.d_ff, num_layers=c.n_layers,
            num_heads=c.n_heads, dropout_rate=0.1, decoder_start_token_id=0, pad_token_id=0, eos_token_id=0,
        )
    ).eval()  # fmt: skip
    pairs = {
        "shared.weight": "shared.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "encoder.bias.table.weight",
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "decoder.bias.table.weight",
        "encoder.final_layer_norm.weight": "encoder_norm.weight",
        "decoder.final_layer_norm.weight": "decoder.norm.weight",
    }
    parts = {
        "encoder": ("SelfAttention:attention", "DenseReluDense:feed"),
        "decoder": ("SelfAttention:attention", "EncDecAttention:cross", "DenseReluDense:feed"),
    }
    for side, names in parts.items():
        for layer, (j, name) in itertools.product(range(c.n_layers), enumerate(names)):
            their, our = name.split(":")
            at, own = f"{side}.block.{layer}.layer.{j}.", f"{side}.layers.{layer}."
            pairs[f"{at}layer_norm.weight"] = f"{own}norm_{our}.weight"
            for weight in ("wi", "wo") if our == "feed" else "qkvo":
                pairs[f"{at}{their}.{weight}.weight"] = f"{own}{our}.{weight}.weight"
    own = model.state_dict()
    their = theirs.state_dict()
    assert set(their) - set(pairs) <= {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
    assert set(own) == set(pairs.values())
    theirs.load_state_dict({name: own[pairs[name]] for name in pairs}, strict=False)
    theirs.tie_weights()
    return theirs, pairs


def fed(model, batch):
    """(input ids, attention mask, labels) as a T5 gets them."""
    is_token = batch.is_item.repeat_interleave(4, 1)
    ids = model.token_of[batch.items].flatten(1).masked_fill(~is_token, 0)
    return ids, is_token.long(), model.token_of[batch.targets[:, -1]]
