"""Item texts → vectors: through a real sentence encoder from disk, through the built-in one; shared, killed, broken."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from conftest import ROOT, prepare_small
from pretended import Gpu
from quantizing import never
from ranks import run_on
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from distrec import config as cfg
from distrec import knobs
from distrec.data import prepared, store, vectors
from distrec.engine.launch import join
from distrec.jobs import embed
from distrec.models.language.lexical import LexicalEncoder
from distrec.runtime import Ranks


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, small):
    """A tiny sentence encoder on disk, in the layout of sentence-transformers."""
    folder = tmp_path_factory.mktemp("encoder")
    words = sorted({word for text in small.items["text"] for word in text.lower().split()})
    vocabulary = {"[PAD]": 0, "[UNK]": 1, **{word: i + 2 for i, word in enumerate(words)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(vocabulary), **shape)).save_pretrained(folder / "bert")
    fast.save_pretrained(folder / "bert")
    body = Transformer(str(folder / "bert"))
    SentenceTransformer(modules=[body, Pooling(32, "mean")], device="cpu").save(str(folder / "whole"))
    return folder / "whole"


def at(root, *args):
    return cfg.load([f"data.root={root}", *args]).data


def config(*args):
    return cfg.load(list(args)).embed


def test_vectors_are_those_of_sentence_transformers(encoder, small, tmp_path):
    folder = embed.embed(config(f"embed.encoder={encoder}"), at(tmp_path), small, Ranks(), never)
    table = vectors.open_file(folder / vectors.FILE)
    expected = SentenceTransformer(str(encoder), device="cpu").encode(
        list(small.items["text"]), normalize_embeddings=True
    )
    np.testing.assert_allclose(table, expected, atol=1e-5)
    assert store.verify(folder)["made_by"]["fitted_on"] == "text"
    assert not (tmp_path / "checkpoints" / folder.name).exists()


def test_a_vector_does_not_depend_on_its_batch(encoder, small):
    texts = list(small.items["text"])
    one = embed.SentenceEncoder(encoder, config("embed.batch=1")).encode(texts)
    many = embed.SentenceEncoder(encoder, config("embed.batch=128")).encode(texts)
    np.testing.assert_allclose(one, many, atol=1e-5)


@pytest.fixture
def unjoined():
    def forget():
        PartialState._reset_state()
        AcceleratorState._reset_state(True)

    forget()
    yield
    forget()


@pytest.mark.parametrize(
    ("launch", "device", "dtype"), [({}, "cuda", "bfloat16"), ({"ACCELERATE_USE_CPU": "true"}, "cpu", "float32")]
)
def test_an_encoder_lies_where_the_launch_says(encoder, tmp_path, monkeypatch, unjoined, launch, device, dtype):
    """launch/cpu.yaml on a machine with a GPU leaves the GPU alone."""
    for key, value in launch.items():
        monkeypatch.setenv(key, value)
    places = []

    class Reader:
        def __init__(self, folder, dtype, pooling, max_tokens, batch, device):
            places.append((dtype, device))

        def encode(self, texts):
            raise NotImplementedError

    monkeypatch.setattr(embed, "TextReader", Reader)
    monkeypatch.setattr(embed.llm, "is_decoder", lambda _: True)
    monkeypatch.setattr("sentence_transformers.SentenceTransformer", lambda *_, device, **__: places.append(device))
    with Gpu():
        join(knobs.Train())
        embed.open_encoder(tmp_path, config())
        embed.SentenceEncoder(encoder, config())
    assert places == [(dtype, device), device]


def test_without_a_launch_an_encoder_lies_on_the_cpu(unjoined):
    with Gpu():
        assert embed.launched() == torch.device("cpu")


def test_nothing_is_embedded_twice_and_other_texts_or_encoders_are(encoder, small, tmp_path, monkeypatch):
    first = embed.embed(config(f"embed.encoder={encoder}"), at(tmp_path), small, Ranks(), never)
    monkeypatch.setattr(embed, "open_encoder", lambda *_: pytest.fail("embedded again"))
    assert (
        embed.embed(config(f"embed.encoder={encoder}", "embed.batch=7"), at(tmp_path), small, Ranks(), never) == first
    )
    other = prepare_small(tmp_path, "data.text={item} {title}")
    for settings, data in (((), other), (("embed.normalize=false",), small), (("embed.dtype=float16",), small)):
        with pytest.raises(pytest.fail.Exception):
            embed.embed(config(f"embed.encoder={encoder}", *settings), at(tmp_path), data, Ranks(), never)


@pytest.mark.parametrize("kind", ["folder", "builtin"])
def test_processes_share_the_work_and_write_the_same_bytes(encoder, small, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(embed, "PART", 32)
    settings = config(f"embed.encoder={encoder if kind == 'folder' else 'builtin'}")
    alone = embed.embed(settings, at(tmp_path / "one"), small, Ranks(), never)
    folders = run_on(3, lambda: str(embed.embed(settings, at(tmp_path / "three"), small, Ranks.here(), never)))
    assert len(set(folders)) == 1
    assert (tmp_path / "three" / alone.name / vectors.FILE).read_bytes() == (alone / vectors.FILE).read_bytes()


def test_a_stopped_job_goes_on_where_it_was(encoder, small, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "PART", 32)
    calls = iter([False, False, True, True, True])
    settings = config(f"embed.encoder={encoder}")
    assert embed.embed(settings, at(tmp_path), small, Ranks(), lambda: next(calls)) is None
    parts = sorted(tmp_path.glob("checkpoints/*/part-*"))
    assert len(parts) == 2
    assert not list(tmp_path.glob("vectors-*"))
    before = [part.stat().st_mtime_ns for part in parts]
    monkeypatch.setattr(embed.shutil, "rmtree", lambda *_, **__: None)
    folder = embed.embed(settings, at(tmp_path), small, Ranks(), never)
    assert [part.stat().st_mtime_ns for part in parts] == before
    whole = embed.embed(settings, at(tmp_path / "whole"), small, Ranks(), never)
    assert (folder / vectors.FILE).read_bytes() == (whole / vectors.FILE).read_bytes()


def test_a_broken_part_is_refused_by_name(encoder, small, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "PART", 32)
    calls = iter([False, True, True, True])
    settings = config(f"embed.encoder={encoder}")
    embed.embed(settings, at(tmp_path), small, Ranks(), lambda: next(calls))
    (part,) = tmp_path.glob("checkpoints/*/part-*")
    raw = bytearray((part / vectors.FILE).read_bytes())
    raw[-1] ^= 1
    (part / vectors.FILE).write_bytes(raw)
    with pytest.raises(ValueError, match=r"part-000000 is corrupt: vectors\.safetensors"):
        embed.embed(settings, at(tmp_path), small, Ranks(), never)


def test_half_precision_and_raw_lengths(encoder, small, tmp_path):
    half = embed.embed(config(f"embed.encoder={encoder}", "embed.dtype=float16"), at(tmp_path), small, Ranks(), never)
    long = embed.embed(config(f"embed.encoder={encoder}", "embed.normalize=false"), at(tmp_path), small, Ranks(), never)
    table, raw = vectors.open_file(half / vectors.FILE), vectors.open_file(long / vectors.FILE)
    assert table.dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(table.astype(np.float64), axis=1), 1, atol=2e-3)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).max() > 0.1


def test_the_builtin_encoder_knows_which_words_go_together(small, tmp_path):
    place = embed.locate(config("embed.encoder=builtin"), tmp_path, small)
    assert store.verify(place)["made_by"]["fitted_on"] == "text"
    folder = embed.embed(config("embed.encoder=builtin"), at(tmp_path), small, Ranks(), never)
    again = embed.embed(config(f"embed.encoder={place}"), at(tmp_path), small, Ranks(), never)
    assert again == folder
    table = np.asarray(vectors.open_file(folder / vectors.FILE))
    category = np.array(small.items["category"])
    cosine = table @ table.T
    same = category[:, None] == category
    np.fill_diagonal(same, False)
    assert cosine[same].mean() > 2 * cosine[category[:, None] != category].mean()


def test_items_of_which_nothing_is_known_are_told_and_share_the_zero_vector(tmp_path, capfd):
    log, items = "user,item,time\n", "item,title\n"
    log += "".join(f"{u},{(u * 7 + k * 3) % 40},{1_600_000_000 + k}\n" for u in range(40) for k in range(6))
    items += "".join(f"{i},{'' if i % 8 == 0 else f'thing of kind {i % 5}'}\n" for i in range(40))
    (tmp_path / "log.csv").write_text(log)
    (tmp_path / "items.csv").write_text(items)
    source = at(tmp_path, "data.source=table", f"data.path={tmp_path}/log.csv", f"data.items={tmp_path}/items.csv")
    data = prepared.load(prepared.prepare(source))
    capfd.readouterr()
    for _ in range(2):  # made, and found again
        folder = embed.embed(config("embed.encoder=builtin"), source, data, Ranks(), never)
        line = next(line for line in capfd.readouterr().err.splitlines() if "zero vector" in line)
        assert "5 of 40 items (12.5%) have a text that says nothing of them and share the zero vector, such as" in line
        assert "give data.text more fields, or take another embed.encoder" in line
    table = vectors.open_file(folder / vectors.FILE)
    zero = np.array(data.items["text"]) == ""
    assert not table[zero].any()
    np.testing.assert_allclose(np.linalg.norm(table[~zero], axis=1), 1, atol=1e-6)
    assert "zero vectors 5;" in embed.describe(table, data)


def test_vectors_of_an_earlier_version_are_refused_or_made_again_by_name(encoder, small, tmp_path, monkeypatch):
    settings = config(f"embed.encoder={encoder}")
    with monkeypatch.context() as earlier:
        earlier.setattr(vectors, "VERSION", 1)
        old = embed.embed(settings, at(tmp_path), small, Ranks(), never)
    assert embed.embed(settings, at(tmp_path), small, Ranks(), never) != old
    with pytest.raises(ValueError, match=r"is stale: version 1 of distrec embed made it, this is version 2\. Leave"):
        vectors.load(old, small)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such-encoder", "neither a folder nor to be had from the hub"),
        ("EMPTY", "no encoder in this folder"),
        ("WRONG", "not a sentence encoder"),
        ("CUT", "not a sentence encoder"),
    ],
)
def test_an_encoder_that_is_none_is_one_clear_line(small, tmp_path, name, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for kind in ("EMPTY", "WRONG", "CUT"):
        (tmp_path / kind).mkdir()
    LexicalEncoder.train(["red nail", "blue nail"], 300, 1, seed=0).save(tmp_path / "CUT")
    cut = tmp_path / "CUT" / "lexical.safetensors"
    cut.write_bytes(cut.read_bytes()[:-9])
    (tmp_path / "WRONG" / "config.json").write_text("{}")
    place = tmp_path / name if name in ("EMPTY", "WRONG", "CUT") else name
    with pytest.raises(ValueError, match=message) as error:
        embed.embed(config(f"embed.encoder={place}"), at(tmp_path), small, Ranks(), never)
    assert "\n" not in str(error.value)


def test_a_length_that_the_encoder_cannot_take_is_refused(encoder):
    with pytest.raises(ValueError, match=r"embed\.max_tokens=100000: this encoder takes 1 to 512"):
        embed.open_encoder(encoder, config("embed.max_tokens=100000"))


@pytest.mark.slow
def test_killed_at_random_it_ends_with_the_same_bytes(encoder, tmp_path):
    driver = (
        "import sys, time; from distrec.jobs import embed; embed.PART = 16; fill = embed._fill_part\n"
        "def slow(*a, **k): time.sleep(.15); fill(*a, **k)\n"
        "embed._fill_part = slow; sys.exit(embed.main(sys.argv[1:]) or 0)"
    )
    settings = [f"embed.encoder={encoder}", "data.synthetic.users=100", "data.synthetic.items=300"]

    def start(root):
        return subprocess.Popen(
            [sys.executable, "-c", driver, *settings, f"data.root={root}"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    assert start(tmp_path / "whole").wait(120) == 0
    for wanted in (1, 4, 9, 15):
        run = start(tmp_path / "killed")
        while len(list(tmp_path.glob("killed/checkpoints/*/part-*"))) < wanted and run.poll() is None:
            time.sleep(0.02)
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert not list(tmp_path.glob("killed/vectors-*"))
    assert start(tmp_path / "killed").wait(120) == 0
    (one,), (other,) = tmp_path.glob("whole/vectors-*"), tmp_path.glob("killed/vectors-*")
    store.verify(other)
    assert (one / vectors.FILE).read_bytes() == (other / vectors.FILE).read_bytes()
