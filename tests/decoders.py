"""Tiny language models of the tested classes, saved to disk as any other."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from distrec import knobs
from distrec.engine import compatibility
from distrec.models.backbone import Backbone
from distrec.models.frellm import Frellm
from distrec.models.language.pretrained import open_decoder

CLASSES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
}
HELD = [{"quantise": held[0], "tune": held[1]} for held in compatibility.HELD if not compatibility.reason(*held)]


def saved(folder, kind="qwen2", seed=0, width=64, layers=3):
    """The folder of a model with random weights and a tokenizer."""
    settings, model = CLASSES[kind]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["red shirt", "blue shoes"], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = settings(
            vocab_size=300, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        )  # fmt: skip
        model(config).save_pretrained(folder)
    return folder


def frellm(
    folder,
    mode="causal",
    n_items=60,
    tune="frozen",
    quantise="none",
    tfm=None,
    dtype="float32",
    device="cpu",
    **settings,
):
    tfm = {"mode": mode, **(tfm or {})}
    backbone = knobs.Backbone(tune=tune, quantise=quantise, dtype=dtype)
    config = knobs.Frellm(tfm=knobs.Filter(**tfm), backbone=backbone, hidden=32, **settings)
    torch.manual_seed(0)
    tables = torch.randn(n_items, 10), torch.randn(n_items, 24)
    torch.manual_seed(0)
    decoder = open_decoder(folder, dtype, quantise).to(device)
    return Frellm(config, Backbone(config.backbone, config.tfm, decoder), *tables).to(device)


def two_steps(model, batch):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model.train()
    for _ in range(2):
        model(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
