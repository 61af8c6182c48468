"""The built-in text encoder: words as their groups of letters, weighed and turned as scikit-learn and LAPACK would."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import sklearn.utils.extmath
from conftest import ROOT
from sklearn.feature_extraction.text import TfidfVectorizer
from threadpoolctl import threadpool_info, threadpool_limits

from distrec import config as cfg
from distrec.data import prepared
from distrec.models.language import lexical
from distrec.models.language.lexical import LexicalEncoder

TEXTS = [
    "Red nail polish",
    "blue nail polish",
    "red lipstick",
    "hair oil",
    "argan hair oil",
    "Red red RED wine",
    "",
] * 3


def names(n, seed=0):
    """One-word names that are all different, as artists' are."""
    rng = np.random.default_rng(seed)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    return list(dict.fromkeys("".join(rng.choice(syllables, rng.integers(2, 5))).title() for _ in range(n)))


def whole(encoder):
    """The encoder before its axes: TF-IDF itself."""
    return LexicalEncoder(list(encoder._groups), encoder._idf, np.eye(len(encoder._idf), dtype=np.float32))


def test_weights_are_those_of_scikit_learn():
    encoder = LexicalEncoder.train(TEXTS, 500, 4, seed=0)
    oracle = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(1, 4), min_df=2, sublinear_tf=True, vocabulary=list(encoder._groups)
    )
    np.testing.assert_allclose(whole(encoder).encode(TEXTS), oracle.fit_transform(TEXTS).toarray(), atol=1e-6)
    every = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), min_df=2).fit(TEXTS)
    assert set(encoder._groups) == set(every.get_feature_names_out()) - {" "}


def test_axes_are_those_of_the_dense_decomposition():
    encoder = LexicalEncoder.train(TEXTS, 500, 4, seed=0)
    table, flat = encoder.encode(TEXTS), whole(encoder).encode(TEXTS).astype(np.float64)
    _, singular, axes = np.linalg.svd(flat)
    np.testing.assert_allclose(np.linalg.norm(table, axis=0), singular[:4], rtol=1e-5)
    np.testing.assert_allclose(table @ table.T, flat @ axes[:4].T @ axes[:4] @ flat.T, atol=1e-5)


def test_axes_of_a_large_table_are_those_of_the_dense_decomposition():
    """More axes than the rank would leave exact: the passes of the randomised SVD count."""
    texts = names(600)
    encoder = LexicalEncoder.train(texts, 2000, 16, seed=0)
    singular = np.linalg.svd(whole(encoder).encode(texts).astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(encoder.encode(texts), axis=0), singular[:16], rtol=0.02)


def test_a_name_of_one_word_says_something():
    """Each name is different from all others; none is noise, and a name is nearest to what is spelt alike."""
    base = names(700)
    texts = base + [name + "s" for name in base[:100]] + [f"The {name}" for name in base[100:200]]
    table = LexicalEncoder.train(texts, 16_384, 256, seed=0).encode(texts)
    length = np.linalg.norm(table, axis=1)
    assert length.min() > 0.1
    unit = table / length[:, None]
    cosine = unit[len(base) :] @ unit[: len(base)].T
    assert (cosine.argmax(1) == np.arange(200)).mean() > 0.95


def test_texts_without_information_share_the_zero_vector():
    """Nothing to read, or nothing that another text has: exactly zero, not what rounding left over."""
    texts = [*names(300), "", "  ", "†‡", "ßþ"]
    table = LexicalEncoder.train(texts, 16_384, 64, seed=0).encode([*texts, "¤¥", "!"])
    assert not table[-6:].any()
    assert np.linalg.norm(table[:-6], axis=1).min() > 0.05


def test_what_the_axes_do_not_hold_is_zero_and_not_noise():
    """Two texts that share with each other alone: their axis is beyond the last that is kept."""
    texts = [*names(300), "§§", "§§"]
    table = LexicalEncoder.train(texts, 16_384, 4, seed=0).encode(texts)
    assert not table[-2:].any()


def test_the_groups_kept_are_the_most_frequent():
    texts = names(300)
    encoder = LexicalEncoder.train(texts, 300, 8, seed=0)
    count = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), binary=True, use_idf=False, norm=None)
    documents = dict(
        zip(
            *(lambda t: (count.get_feature_names_out(), t))(np.asarray(count.fit_transform(texts).sum(0))[0]),
            strict=True,
        )
    )
    del documents[" "]
    least = min(documents[group] for group in encoder._groups)
    assert len(encoder._groups) == 300
    assert {group for group, n in documents.items() if n > least} <= set(encoder._groups)


def test_spellings_of_one_text_are_one():
    encoder = LexicalEncoder.train([*TEXTS, "ﬁne café"], 500, 8, seed=0)
    one, two, three = encoder.encode(["fine CAFÉ", "ﬁne cafe\u0301", "Fine   Café"])
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, three)


def test_a_vector_depends_on_its_text_alone():
    encoder = LexicalEncoder.train(TEXTS, 500, 4, seed=0)
    np.testing.assert_array_equal(encoder.encode(TEXTS)[::-1], encoder.encode(TEXTS[::-1]))
    np.testing.assert_array_equal(encoder.encode(TEXTS[:1]), encoder.encode(TEXTS)[:1])


def test_the_same_bits_in_any_process_on_any_number_of_threads():
    code = (
        "import hashlib; from test_lexical import names; from distrec.models.language.lexical import LexicalEncoder\n"
        "t = names(900); e = LexicalEncoder.train(t, 4000, 64, 0); print(hashlib.sha256(e.encode(t).tobytes()).hexdigest())"
    )
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "models")))
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "PYTHONPATH": paths,
                "PYTHONHASHSEED": n,
                "OMP_NUM_THREADS": n,
                "OPENBLAS_NUM_THREADS": n,
            },
            check=True,
            capture_output=True,
        ).stdout
        for n in ("1", "2")
    }
    assert len(hashes) == 1


def test_sums_are_taken_on_one_thread_whatever_the_process_has(monkeypatch):
    """Large tables are summed in another order on more threads."""
    threads, svd = [], sklearn.utils.extmath.randomized_svd

    def watched(*args, **settings):
        threads.extend(pool["num_threads"] for pool in threadpool_info())
        return svd(*args, **settings)

    monkeypatch.setattr(sklearn.utils.extmath, "randomized_svd", watched)
    with threadpool_limits(2):
        LexicalEncoder.train(TEXTS, 500, 4, seed=0)
        assert max(pool["num_threads"] for pool in threadpool_info()) == 2
    assert {*threads} == {1}


def test_a_large_catalogue_is_learnt_from_a_seeded_sample(monkeypatch):
    monkeypatch.setattr(lexical, "_SAMPLE", 200)
    texts = names(500)
    one, two, other = (LexicalEncoder.train(texts, 500, 8, seed).encode(texts) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert np.abs(np.linalg.norm(one, axis=1) - np.linalg.norm(other, axis=1)).max() > 1e-3


def test_saved_and_loaded_it_is_the_same(tmp_path):
    encoder = LexicalEncoder.train(TEXTS, 500, 4, seed=0)
    encoder.save(tmp_path)
    np.testing.assert_array_equal(LexicalEncoder.load(tmp_path).encode(TEXTS), encoder.encode(TEXTS))


@pytest.mark.parametrize("version", [None, 1, 3])
def test_an_encoder_of_another_version_is_refused_by_name(tmp_path, version):
    LexicalEncoder.train(TEXTS, 500, 4, seed=0).save(tmp_path)
    about = json.loads((tmp_path / "encoder.json").read_text())
    about = {key: value for key, value in about.items() if key != "version"} | ({"version": version} if version else {})
    (tmp_path / "encoder.json").write_text(json.dumps(about))
    with pytest.raises(
        ValueError, match=rf"version {version or 1} of the built-in encoder, this is version 2: .*embed"
    ):
        LexicalEncoder.load(tmp_path)


def test_catalogues_without_words_without_common_letters_and_of_one_item():
    for texts in (["", ""], [" ", "\t"]):
        with pytest.raises(ValueError, match="no item has a text"):
            LexicalEncoder.train(texts, 300, 8, seed=0)
    with pytest.raises(ValueError, match="no two items share a letter"):
        LexicalEncoder.train(["a", "b"], 300, 8, seed=0)
    one = LexicalEncoder.train(["one item"], 300, 8, seed=0).encode(["one item"])
    np.testing.assert_allclose(np.abs(one), 1, atol=1e-6)


@pytest.mark.parametrize(("name", "empty"), [("lastfm_hetrec2011", 22), ("movielens_1m", 0), ("amazon_beauty_2014", 7)])
def test_real_catalogues_of_short_names(real, artefacts, name, empty):
    """Before: 41 % of LastFM's artists and 17 % of MovieLens-1M were noise of length below 1e-9."""
    words = [f"data.root={artefacts}", "data.source=sequences", f"data.path={real(name)}"]
    texts = list(prepared.load(prepared.prepare(cfg.load(words).data)).items["text"])
    assert sum(not text.strip() for text in texts) == empty
    length = np.linalg.norm(LexicalEncoder.train(texts, 16_384, 64, seed=0).encode(texts), axis=1)
    assert (length == 0).mean() < 0.012
    assert length[length > 0].min() > lexical._LEAST
