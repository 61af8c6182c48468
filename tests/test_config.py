import re

import pytest

from distrec import config as cfg
from distrec import knobs


def test_later_wins_and_scientific_notation_is_a_number(tmp_path):
    (tmp_path / "a.yaml").write_text("train: {lr: 1e-3, epochs: 3}\n")
    config = cfg.load([str(tmp_path / "a.yaml"), "train.lr=3e-4"], {"train.lr": 5e-4})
    assert config.train.lr == 5e-4
    assert config.train.epochs == 3


def test_another_model_name_drops_the_keys_of_the_first(tmp_path):
    (tmp_path / "a.yaml").write_text("model: {name: sasrec, d_model: 32}\n")
    assert cfg.load([str(tmp_path / "a.yaml"), "model.name=markov"]).model == knobs.Markov()
    assert cfg.load([str(tmp_path / "a.yaml"), "model.name=sasrec"]).model.d_model == 32


def test_words_of_one_command_mean_the_same_in_any_order(tmp_path):
    (tmp_path / "a.yaml").write_text("model: {name: sasrec, d_model: 32, dropout: 0.4}\n")
    words = ["model.taps=7", "model.name=tone", "model.d_model=48", "codes.size=8", "codes.name=kmeans"]
    for each in (words, words[::-1]):
        config = cfg.load([str(tmp_path / "a.yaml"), *each])
        assert (config.model, config.codes) == (knobs.Tone(taps=7, d_model=48), knobs.KMeansCodes(size=8))
        assert cfg.load(
            [], {"model": {"name": "sasrec", "d_model": 32}, **dict(w.split("=") for w in each)}
        ) == cfg.load(each)
    assert cfg.load(["model.d_model=48", str(tmp_path / "a.yaml")]).model.d_model == 32  # a file says all that it says
    assert cfg.load(["train.lr=1", "train.lr=2"]).train.lr == 2
    assert cfg.load(["data.where.a=1", "data.where=null", "data.where.a=3"]).data.where == {"a": 3}


def test_a_key_called_name_is_no_class_elsewhere(tmp_path):
    (tmp_path / "a.yaml").write_text("data: {source: table, path: x.csv, where: {rating: '>= 4', name: a}}\n")
    found = cfg.load([str(tmp_path / "a.yaml"), "data.where.name=b"])
    assert found.data.where == {"rating": ">= 4", "name": "b"}


def test_a_part_of_what_is_one_value_is_refused():
    with pytest.raises(
        ValueError, match=r"^data\.where='rating >= 2' is one value, to which no data\.where\.user can be added"
    ):
        cfg.load(["data.where=rating >= 2", "data.where.user=b"])


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        ("train.lrr=1", "'train.lr'"),
        ("train.epochs=abc", "train.epochs='abc'"),
        ("train.epochs=0", "train.epochs=0"),
        ("train.lr=-1", "greater than 0"),
        ("train.lr=.nan", "train.lr"),
        ("model.name=sasrek", "'sasrec'"),
        ("model.d_modl=3", "'model.d_model'"),
        ("model.d_model=63", "n_heads 2"),
        ("model.loss=bc", "model.loss='bc'"),
        ("model.dropout=1", "model.dropout=1"),
        ("sedd=1", "'seed'"),
        ("data.synthetic.user=3", "'data.synthetic.users'"),
        ("data.source=amazon", "data.path="),
        ("data=[", "not YAML"),
        ("data=5", "data=5"),
        ("nothing", "neither FILE.yaml nor"),
        ("absent.yaml", "absent.yaml"),
    ],
)
def test_a_wrong_key_or_value_is_one_line_that_names_it(bad, names):
    with pytest.raises(ValueError, match=re.escape(names)) as caught:
        cfg.load([bad])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("train: {lr: 1}\ntrain: {lr: 2}\n", "stands twice"),
        ("train:\n  lr: 1\n epochs: 2\n", "line 3"),
        ("- 1\n", "mapping"),
        ("a: !!python/object/apply:os.system [ls]\n", "not YAML"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(text, names, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"a\.yaml") as caught:
        cfg.load([str(tmp_path / "a.yaml")])
    assert names in str(caught.value)


def test_dump_and_load_are_inverse(tmp_path):
    config = cfg.load(
        [
            "model.name=markov",
            "model.decay=0.5",
            "data.columns.user=customer",
            "out=runs/x",
            "train.trackers=[tensorboard]",
        ]
    )
    (tmp_path / "c.yaml").write_text(cfg.dump(config))
    assert cfg.load([str(tmp_path / "c.yaml")]) == config


def test_an_encoders_own_keys_are_refused_with_another():
    for words, key in (
        (["embed.encoder=builtin", "embed.max_tokens=9"], "max_tokens"),
        (["embed.dimensions=9"], "dimensions"),
    ):
        with pytest.raises(ValueError, match=f"embed.{key} does nothing with embed.encoder="):
            cfg.load(words)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: 1\nout: a\x07b\n", r"c\.yaml, line 2: holds the character U\+0007: remove it"),
        ("seed: 1".encode("utf-16-le"), r"c\.yaml, line 1: holds the character U\+0000: remove it"),
        (b"data:\n", "data is empty: indent its keys below it, or leave it out"),
        (b"model:\n  name: frellm\n  backbone:\n", r"model\.backbone is empty: indent its keys"),
    ],
)
def test_a_file_of_settings_that_says_nothing_is_one_clear_line(tmp_path, content, message):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=f"^{message}[^\n]*$".replace("c\\.yaml", r".*c\.yaml")):
        cfg.load([str(tmp_path / "c.yaml")])


def test_a_word_with_a_control_character_is_one_clear_line():
    with pytest.raises(ValueError, match=r"^the value of codes\.hidden, line 1: holds the character U\+0007"):
        cfg.load(["codes.name=rqvae", "codes.hidden=[\x07]"])


@pytest.mark.parametrize(
    "text",
    ["data: &x\n  synthetic: *x\n", "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True))],
)  # fmt: skip
def test_anchors_without_end_are_one_clear_line(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"c\.yaml, line 1: not YAML: more than 100,000 values[^\n]*$"):
        cfg.load([str(tmp_path / "c.yaml")])


@pytest.mark.parametrize(
    "word", ["seed=true", "train.lr=true", "train.epochs=False", "data.k_core=TRUE", "train.betas=[true, 0.9]"]
)
def test_a_truth_value_is_no_number(word):
    key = word.partition("=")[0]
    with pytest.raises(ValueError, match=rf"^{key}=(true|false): is a number, not true or false$"):
        cfg.load([word])


def test_a_long_value_is_cut_in_a_message():
    with pytest.raises(ValueError, match=r"^train\.epochs='aaa") as error:
        cfg.load(["train.epochs=" + "a" * 70_000])
    assert len(str(error.value)) < 300
