"""A small text encoder that needs no download: trained on the catalogue's own texts in seconds.

Byte-pair tokens → TF-IDF → truncated SVD (latent semantic analysis).   Source: Deerwester et al. 1990.
It knows which words occur together in this catalogue, and nothing of any other text.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from jaxtyping import Float
from scipy import sparse
from scipy.sparse.linalg import svds
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

_SAMPLE = 200_000  # texts that the tokens and axes are learnt from
KIND = "distrec-lexical"


class LexicalEncoder:
    """Texts → vectors; a text without a known token is a row of zeros."""

    def __init__(self, tokenizer: Tokenizer, idf: Float[np.ndarray, " V"], axes: Float[np.ndarray, "V D"]):
        self._tokenizer = tokenizer
        self._idf = idf
        self._axes = axes

    @classmethod
    def train(cls, texts: Sequence[str], vocabulary: int, dimensions: int, seed: int) -> "LexicalEncoder":
        """Learn tokens, their weights and the axes from (a seeded sample of) the texts.

        Raises: ValueError when no text has a letter in it.
        """
        if len(texts) > _SAMPLE:
            chosen = np.random.default_rng(seed).choice(len(texts), _SAMPLE, replace=False)
            texts = [texts[int(i)] for i in np.sort(chosen)]
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator(
            texts, trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False), length=len(texts)
        )
        counts = _counts(tokenizer, texts)
        n = counts.shape[0]
        documents = np.bincount(counts.indices, minlength=counts.shape[1])
        if not documents.any():
            raise ValueError("no item has a text to learn from: give data.text a field that items have")
        idf = (np.log((1 + n) / (1 + documents)) + 1).astype(np.float32)
        weighted = _weighted(counts, idf)
        used = np.flatnonzero(documents)
        rank = min(dimensions, min(n, len(used)) - 1)
        axes = np.zeros((counts.shape[1], max(rank, 1)), np.float32)
        if rank < 1:  # one text, or one token
            axes[used] = 1
        else:
            start = np.random.default_rng(seed).standard_normal(min(n, len(used)))
            _, strength, found = svds(weighted[:, used].astype(np.float64), k=rank, v0=start, rng=seed)
            strength, found = np.asarray(strength)[::-1], np.asarray(found)[::-1]
            found = found * (strength > 1e-6 * strength[0])[:, None]  # no axes of rounding alone
            axes[used] = (found * np.sign(found[np.arange(rank), np.abs(found).argmax(1)])[:, None]).T
        return cls(tokenizer, idf, axes)

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "n D"]:
        return _weighted(_counts(self._tokenizer, texts), self._idf) @ self._axes

    def save(self, folder: Path) -> None:
        self._tokenizer.save(str(folder / "tokenizer.json"))
        safetensors.numpy.save_file({"idf": self._idf, "axes": self._axes}, folder / "lexical.safetensors")
        (folder / "encoder.json").write_text(json.dumps({"kind": KIND, "dimensions": self._axes.shape[1]}))

    @classmethod
    def load(cls, folder: Path) -> "LexicalEncoder":
        weights = safetensors.numpy.load_file(folder / "lexical.safetensors")
        return cls(Tokenizer.from_file(str(folder / "tokenizer.json")), weights["idf"], weights["axes"])


def is_lexical(folder: Path) -> bool:
    return (folder / "lexical.safetensors").is_file() and (folder / "encoder.json").is_file()


def _counts(tokenizer: Tokenizer, texts: Iterable[str]) -> Any:
    """How often each text holds each token."""
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]
    ends = np.cumsum([0, *map(len, ids)])
    tokens = np.concatenate([np.asarray(row, np.int64) for row in ids]) if ends[-1] else np.empty(0, np.int64)
    shape = (len(ids), tokenizer.get_vocab_size())
    table = sparse.csr_array((np.ones(len(tokens), np.float32), tokens, ends), shape=shape)
    table.sum_duplicates()
    return table


def _weighted(counts: Any, idf: np.ndarray) -> Any:
    """Sublinear TF-IDF, each row of unit length."""
    weighted = sparse.csr_array(
        ((1 + np.log(counts.data)) * idf[counts.indices], counts.indices, counts.indptr), counts.shape
    )
    length = np.sqrt(np.asarray(weighted.multiply(weighted).sum(1))).ravel()
    return sparse.diags_array((1 / np.maximum(length, 1e-12)).astype(np.float32)).tocsr() @ weighted
