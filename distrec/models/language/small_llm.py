"""A small causal language model that needs no download: trained on the catalogue's own texts in seconds.

Byte-level byte pairs → Qwen2 (RMSNorm, rotary positions, SwiGLU, tied embeddings), saved as an ordinary Hugging Face
folder.  It has the code path of a large model, not its knowledge: it knows which words follow which in this catalogue.

Shapes: B texts in a batch · T tokens of a text.
"""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

POSITIONS = 512  # tokens that the saved model takes
PAD, EOS = "<|pad|>", "<|endoftext|>"
_SAMPLE = 20_000  # texts that are learnt from,
_CHARACTERS = 600  # as many characters of each,
_LENGTH = 128  # and as many tokens
_TOKENS = 1_024  # in a step, padding included
_LEAST = 256 + 2  # every byte and the two marks
_PEAK = 4e-3  # learning rate after the warm-up
_IGNORED = -100  # label that counts for nothing


def train(
    texts: Sequence[str],
    folder: Path,
    *,
    vocabulary: int = 2048,
    d_model: int = 64,
    n_layers: int = 4,
    n_heads: int = 4,
    steps: int = 300,
    seed: int = 0,
    threads: int = 1,
    bar: bool = True,
) -> dict[str, float]:
    """Figures of the model that now lies in the folder; losses in nats per token that follows another.

    Loss: mean over real tokens t ≥ 1 of -log p(token_t | token_0 … token_t-1), each text alone and ended by EOS (a long one cut);
    "loss" is that of the last tenth of the steps, "unigram" the entropy of the same tokens by their frequency.
    Same texts, settings and seed give the same bytes on one kind of machine; another count of threads may not.
    torch's global random state and thread count are afterwards what they were.

    Raises: ValueError when there is no text at all, or no such model can be built.
    """
    _check(len(texts), vocabulary, d_model, n_layers, n_heads, steps, threads)
    began = time.perf_counter()
    rng = np.random.default_rng(seed)
    sample = _sample(texts, rng)
    tokenizer = _tokenizer(sample, vocabulary)
    found = tokenizer.backend_tokenizer.encode_batch_fast(sample)
    rows = [np.array(encoding.ids[:_LENGTH], np.int64) for encoding in found]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        model = _model(tokenizer, d_model, n_layers, n_heads, seed)
        losses = _fit(model, rows, steps, rng, bar)
    finally:
        torch.set_num_threads(before)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "texts": len(rows),
        "tokens": sum(map(len, rows)),
        "vocabulary": len(tokenizer),
        "parameters": model.num_parameters(),
        "steps": len(losses),
        "unigram": _entropy(rows),
        "loss": float(np.mean(losses[-max(1, len(losses) // 10) :])) if losses else 0.0,
        "seconds": time.perf_counter() - began,
    }


def _check(n_texts: int, vocabulary: int, d_model: int, n_layers: int, n_heads: int, steps: int, threads: int) -> None:
    if not n_texts:
        raise ValueError("there is no text to learn from: the catalogue has no items")
    if vocabulary < _LEAST:
        raise ValueError(f"vocabulary={vocabulary}: every byte and two marks need at least {_LEAST}")
    if min(n_layers, n_heads, steps, threads) < 1:
        raise ValueError(f"n_layers={n_layers}, n_heads={n_heads}, steps={steps}, threads={threads}: at least 1 each")
    if d_model % n_heads or d_model // n_heads < 8 or d_model // n_heads % 2:
        raise ValueError(
            f"d_model={d_model}, n_heads={n_heads}: a head needs an even number of dimensions, 8 or more; "
            f"d_model={max(8, -(-d_model // (2 * n_heads)) * 2) * n_heads} would do"
        )


def _sample(texts: Sequence[str], rng: np.random.Generator) -> list[str]:
    """The beginnings of all texts, or of a random choice in their order."""
    chosen = range(len(texts))
    if len(texts) > _SAMPLE:
        chosen = np.sort(rng.choice(len(texts), _SAMPLE, replace=False)).tolist()
    return [texts[i][:_CHARACTERS] for i in chosen]


def _tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """Tokens of any text, empty or in any script, ended by EOS; fewer kinds than asked where the texts give fewer.

    Words are split by Qwen2's own pattern: AutoTokenizer applies it to this architecture, whatever tokenizer.json says.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, tokenizer.token_to_id(EOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, model_max_length=POSITIONS, padding_side="right"
    )


def shape(vocabulary: int = 2048, d_model: int = 64, n_layers: int = 4, n_heads: int = 4) -> Any:
    """The model's own config."""
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=d_model,
        intermediate_size=3 * d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        architectures=["Qwen2ForCausalLM"],
    )


def _model(tokenizer: Any, d_model: int, n_layers: int, n_heads: int, seed: int) -> Any:
    from transformers import Qwen2ForCausalLM

    config = shape(len(tokenizer), d_model, n_layers, n_heads)
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
        return Qwen2ForCausalLM(config)


def _fit(model: Any, rows: Sequence[np.ndarray], steps: int, rng: np.random.Generator, bar: bool) -> list[float]:
    """The loss of each step; none when no text has a second token."""
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        return []
    optimizer = torch.optim.AdamW(model.parameters(), lr=_PEAK, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, steps))
    batches, losses = _batches(rows, rng), []
    model.train()
    with torch.enable_grad(), tqdm(total=steps, desc="language model", unit="step", disable=not bar) as progress:
        for _ in range(steps):
            ids, labels = _padded(next(batches), model.config.pad_token_id)
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss  # causal: padding behind is never seen
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            progress.update()
            progress.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    model.eval()
    return losses


def _share(step: int, steps: int) -> float:
    """Of the peak learning rate: up in a line over the first twentieth, down along a cosine."""
    warm = max(1, steps // 20)
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _batches(rows: Sequence[np.ndarray], rng: np.random.Generator) -> Iterator[list[np.ndarray]]:
    """Texts of about one length, as many as fit in a step; epoch after epoch in another order, without end."""
    lengths = np.array([len(row) for row in rows])
    while True:
        order = rng.permutation(len(rows))
        order = order[np.argsort(-lengths[order], kind="stable")]
        cuts = [0]
        while cuts[-1] < len(order):
            cuts.append(cuts[-1] + max(1, _TOKENS // int(lengths[order[cuts[-1]]])))
        for i in rng.permutation(len(cuts) - 1):
            yield [rows[j] for j in order[cuts[i] : cuts[i + 1]]]


def _padded(rows: Sequence[np.ndarray], pad: int) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Token ids, and the same as labels with the padding ignored."""
    ids = np.full((len(rows), max(map(len, rows))), pad)
    labels = np.full_like(ids, _IGNORED)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = labels[i, : len(row)] = row
    return torch.from_numpy(ids), torch.from_numpy(labels)


def _entropy(rows: Sequence[np.ndarray]) -> float:
    """-Σ p log p over the tokens that follow another, in nats."""
    counts = np.bincount(np.concatenate([row[1:] for row in rows]))
    share = counts[counts > 0] / max(1, counts.sum())
    return float(-(share * np.log(share)).sum())
