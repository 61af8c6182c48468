"""A causal language model of the catalogue's own texts: loaded as users load one, the same again, better than counting."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from distrec.models.language import small_llm

SAFE = {"trust_remote_code": False, "local_files_only": True}
QUICK = {"vocabulary": 400, "d_model": 32, "n_layers": 2, "n_heads": 2, "bar": False}
ODD = ["", " ", "naïve café", "指甲油 2012", "помада", "💅🏽👩‍👩‍👧", "\x00\t\n", "<|pad|>", "many words " * 40]


@pytest.fixture(scope="module")
def texts(small):
    return list(small.items["title"])


@pytest.fixture(scope="module")
def made(texts, tmp_path_factory):
    """A folder with a model, and the figures of its training."""
    folder = tmp_path_factory.mktemp("llm")
    return folder, small_llm.train(texts, folder, steps=150, **QUICK)


def opened(folder, kind=AutoModelForCausalLM, **more):
    return kind.from_pretrained(folder, use_safetensors=True, **SAFE, **more).eval()


def tokens(folder, texts):
    tokenizer = AutoTokenizer.from_pretrained(folder, **SAFE)
    return tokenizer, tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")


def test_it_is_an_ordinary_folder(made, texts):
    folder, figures = made
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]
    whole, body = opened(folder), opened(folder, AutoModel)
    assert whole.config.max_position_embeddings == small_llm.POSITIONS
    assert whole.num_parameters() == figures["parameters"]
    tokenizer, batch = tokens(folder, texts[:5])
    assert len(tokenizer) == whole.config.vocab_size == figures["vocabulary"]
    with torch.no_grad():
        states = body(**batch).last_hidden_state
        torch.testing.assert_close(whole(**batch).logits, states @ body.embed_tokens.weight.T, atol=1e-5, rtol=1e-5)


def test_it_runs_in_half_precision_and_up_to_its_last_position(made, texts):
    folder, _ = made
    half = opened(folder, AutoModel, dtype=torch.bfloat16)
    _, batch = tokens(folder, [*texts[:3], "lamp " * 1000])
    assert batch["input_ids"].shape[1] == small_llm.POSITIONS
    with torch.no_grad():
        assert half(**batch).last_hidden_state.isfinite().all()


def test_the_tokenizer_that_users_open_is_the_one_that_was_trained(made, texts):
    """transformers splits texts in its own way for this architecture, whatever tokenizer.json says."""
    folder, _ = made
    tokenizer, trained = (
        AutoTokenizer.from_pretrained(folder, **SAFE),
        Tokenizer.from_file(str(folder / "tokenizer.json")),
    )
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    for text in [*texts, *ODD, "OPI's 0.5-Fluid  Ounce\r\n(2012)  "]:
        ids = tokenizer(text)["input_ids"]
        assert ids == trained.encode(text).ids
        assert ids[-1] == tokenizer.eos_token_id
        if "<|" not in text:
            assert tokenizer.decode(ids[:-1]) == text


def test_it_predicts_better_than_the_frequencies_of_tokens(made, texts):
    folder, figures = made
    tokenizer, batch = tokens(folder, texts)
    real = batch["attention_mask"][:, 1:].bool()
    target = batch["input_ids"][:, 1:][real]
    share = torch.bincount(target).double() / len(target)
    unigram = -(share[target].log().mean()).item()
    with torch.no_grad():
        logits = opened(folder)(**batch).logits[:, :-1][real]
    loss = torch.nn.functional.cross_entropy(logits, target).item()
    assert figures["unigram"] == pytest.approx(unigram)
    assert figures["loss"] == pytest.approx(loss, abs=0.15)
    assert loss < 0.6 * unigram
    assert figures["tokens"] == int(batch["attention_mask"].sum())
    assert tokenizer.pad_token_id not in target


def test_titles_of_one_category_are_nearer(made, small, texts):
    folder, _ = made
    _, batch = tokens(folder, texts)
    real = batch["attention_mask"][..., None]
    with torch.no_grad():
        states = opened(folder, AutoModel)(**batch).last_hidden_state
    mean = ((states * real).sum(1) / real.sum(1)).double()
    unit = torch.nn.functional.normalize(mean - mean.mean(0), dim=1)
    cosine = (unit @ unit.T).numpy()
    category = np.array(small.items["category"])
    same, other = category[:, None] == category, ~np.eye(len(category), dtype=bool)
    assert cosine[same & other].mean() > cosine[~same].mean() + 0.1
    nearest = np.where(other, cosine, -2).argmax(1)
    assert (category[nearest] == category).mean() > 2 * same[other].mean()


def test_the_same_bytes_again_and_others_from_another_seed(texts, tmp_path):
    def trained(name, **more):
        small_llm.train(texts, tmp_path / name, steps=8, **QUICK, **more)
        return [(tmp_path / name / file).read_bytes() for file in ("model.safetensors", "tokenizer.json")]

    first = trained("first", seed=3)
    torch.manual_seed(99)
    torch.rand(7)
    torch.set_num_threads(2)
    try:
        assert trained("again", seed=3) == first
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert trained("other", seed=4)[0] != first[0]


def test_nobody_elses_dice_are_touched(tmp_path):
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()  # noqa: NPY002

    before = states()
    small_llm.train(["red nail", "blue nail"], tmp_path, steps=2, **QUICK)
    assert states() == before


@pytest.mark.parametrize("texts", [["one item"], [""], ["", "", ""], ["same words"] * 30, ODD, ["x"]], ids=range(6))
def test_odd_catalogues(texts, tmp_path):
    figures = small_llm.train(texts, tmp_path, steps=3, **QUICK)
    assert all(np.isfinite(value) for value in figures.values())
    assert figures["steps"] == (3 if any(texts) else 0)
    _, batch = tokens(tmp_path, [*texts, *ODD])
    with torch.no_grad():
        assert opened(tmp_path)(**batch).logits.isfinite().all()


def test_many_texts_are_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(small_llm, "_SAMPLE", 50)
    figures = small_llm.train([f"item {i}" for i in range(1000)], tmp_path, steps=2, **QUICK)
    assert figures["texts"] == 50


def test_long_texts_are_cut_and_learnt_from(tmp_path):
    figures = small_llm.train(["x1 " * 3000, "short"], tmp_path, steps=2, **QUICK)
    assert small_llm._LENGTH < figures["tokens"] <= small_llm._LENGTH + len("short") + 1
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).truncation is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"texts": []}, "there is no text"),
        ({"vocabulary": 257}, "vocabulary=257: .* at least 258"),
        ({"steps": 0}, "steps=0"),
        ({"d_model": 30, "n_heads": 4}, "d_model=30, n_heads=4: .*d_model=32 would do"),
        ({"d_model": 32, "n_heads": 8}, "d_model=64 would do"),
        ({"d_model": 36, "n_heads": 4}, "d_model=40 would do"),
    ],
)
def test_impossible_models_are_refused_before_any_work(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        small_llm.train(**{"texts": ["a"], "folder": tmp_path, **settings})
    assert not list(tmp_path.iterdir())
