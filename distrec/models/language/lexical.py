"""A small text encoder that needs no download: trained on the catalogue's own texts in seconds.

Letters and groups of two to four letters of each word → TF-IDF → truncated SVD (latent semantic analysis).
It knows which words occur together in this catalogue, and nothing of any other text.
Source: Deerwester et al. 1990; words as their groups of letters: Bojanowski et al. 2017; the SVD: Halko et al. 2011.
Deviation: groups of one to four letters, where fastText takes three to six beside whole words: one short word (an artist's
name) then still shares some with other texts. A text that shares none with another is a row of zeros, never stretched noise.
"""

import json
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from jaxtyping import Float
from scipy import sparse

_SAMPLE = 100_000  # texts that the groups of letters and axes are learnt from
_LETTERS = (1, 4)  # in a group; groups lie within a word and its two boundaries
_PASSES = 4  # of the randomised SVD's power iteration
_LEAST = 1e-2  # of a unit row's length: what the axes hold of a text is above it, or is rounding and no converged axis
KIND = "distrec-lexical"
VERSION = 2  # 1: byte-pair tokens, noise for a text that was one token of its own


class LexicalEncoder:
    """Texts → vectors; a text that shares nothing with the texts it was trained on is a row of zeros."""

    def __init__(self, groups: Sequence[str], idf: Float[np.ndarray, " V"], axes: Float[np.ndarray, "V D"]):
        self._groups = {group: place for place, group in enumerate(groups)}
        self._idf = idf
        self._axes = axes

    @classmethod
    def train(cls, texts: Sequence[str], vocabulary: int, dimensions: int, seed: int) -> "LexicalEncoder":
        """Learn groups of letters, their weights and the axes from (a seeded sample of) the texts.

        Raises: ValueError when no text has a letter in it, or no two texts share one.
        """
        from sklearn.utils.extmath import randomized_svd
        from threadpoolctl import threadpool_limits

        if len(texts) > _SAMPLE:
            chosen = np.random.default_rng(seed).choice(len(texts), _SAMPLE, replace=False)
            texts = [texts[int(i)] for i in np.sort(chosen)]
        if not any(text.split() for text in texts):
            raise ValueError("no item has a text to learn from: give data.text a field that items have")
        counts, groups = _counts(texts, None)
        n = counts.shape[0]
        documents = np.bincount(counts.indices, minlength=len(groups))
        often = np.argsort(-documents, kind="stable")[:vocabulary]
        used = np.sort(often[documents[often] >= min(2, n)])
        if not len(used):
            raise ValueError("no two items share a letter of their texts: give data.text a richer field")
        idf = (np.log((1 + n) / (1 + documents[used])) + 1).astype(np.float32)
        weighted = _weighted(counts[:, used], idf).astype(np.float64)
        rank = min(dimensions, *weighted.shape)
        with threadpool_limits(1):  # the same bits on any number of threads
            turn: Any = randomized_svd  # its annotations are narrower than what it takes
            _, strength, axes = turn(weighted, rank, n_iter=_PASSES, power_iteration_normalizer="QR", random_state=seed)
        axes *= (strength > 1e-6 * strength[0])[:, None]  # no axes of rounding alone
        return cls([groups[i] for i in used], idf, np.ascontiguousarray(axes.T, np.float32))

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "n D"]:
        vectors = _weighted(_counts(texts, self._groups)[0], self._idf) @ self._axes
        vectors[np.linalg.norm(vectors, axis=1) < _LEAST] = 0
        return vectors

    def save(self, folder: Path) -> None:
        (folder / "groups.json").write_text(json.dumps(list(self._groups)))
        safetensors.numpy.save_file({"idf": self._idf, "axes": self._axes}, folder / "lexical.safetensors")
        about = {"kind": KIND, "version": VERSION, "dimensions": self._axes.shape[1]}
        (folder / "encoder.json").write_text(json.dumps(about))

    @classmethod
    def load(cls, folder: Path) -> "LexicalEncoder":
        """Raises: ValueError when an earlier version of distrec trained the encoder."""
        about = json.loads((folder / "encoder.json").read_text())
        if about.get("version") != VERSION:
            raise ValueError(
                f"it was trained by version {about.get('version', 1)} of the built-in encoder, this is version {VERSION}: "
                "pass embed.encoder=builtin to train it again"
            )
        weights = safetensors.numpy.load_file(folder / "lexical.safetensors")
        return cls(json.loads((folder / "groups.json").read_text()), weights["idf"], weights["axes"])


def is_lexical(folder: Path) -> bool:
    return (folder / "lexical.safetensors").is_file() and (folder / "encoder.json").is_file()


def _counts(texts: Iterable[str], groups: dict[str, int] | None) -> tuple[Any, list[str]]:
    """How often each text holds each group of letters (None: each that occurs), and the groups in the order of columns."""
    from sklearn.feature_extraction.text import CountVectorizer

    make: Any = CountVectorizer  # its annotations are narrower than what it takes
    counter = make(analyzer="char_wb", ngram_range=_LETTERS, preprocessor=_plain, vocabulary=groups, dtype=np.float32)
    counts = sparse.csr_array(counter.transform(texts) if groups else counter.fit_transform(texts))
    names = list(counter.get_feature_names_out())
    if groups is None:  # a boundary alone is no letter
        letters = [place for place, name in enumerate(names) if name != " "]
        counts, names = counts[:, letters], [names[place] for place in letters]
    return counts, names


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def _weighted(counts: Any, idf: np.ndarray) -> Any:
    """Sublinear TF-IDF, each row of unit length."""
    weighted = sparse.csr_array(
        ((1 + np.log(counts.data)) * idf[counts.indices], counts.indices, counts.indptr), counts.shape
    )
    length = np.sqrt(np.asarray(weighted.multiply(weighted).sum(1))).ravel()
    return sparse.diags_array((1 / np.maximum(length, 1e-12)).astype(np.float32)).tocsr() @ weighted
