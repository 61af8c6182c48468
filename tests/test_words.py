"""A word of the command line, and a value of a file, is what stands there."""

import os
import pwd
import re
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import yaml

from distrec import config as cfg
from distrec import hints, knobs
from tune.space import load as space_of

ODD = [
    "runs/try #2", "2024-05-01", "20240501", "007", "1e3", "1_000", "0x10", "12:30", "yes", "No", "on", "true", "~x/..",
    "a: b", "{title}. {brand}", "{title}", "[a, b]", "- a", "*a", "&a", "!a", "%a", "@a", "`a`", "|", ">", "?", "'a'",
    '"a"', "it's", 'say "x"', " a", "a ", "a\tb", "a\\nb", "ärger/☃ 😀", "a=b", "=", "null x", "-1", ".5", ".nan", "...",
    "---", "#", "#1", "1,2", "a,b", "${", "5$", "\u2028", "\x85",
]  # fmt: skip
TEXTS = ["data.text", "data.columns.user", "codes.category", "embed.revision"]
PATHS = ["out", "data.root", "data.path", "data.items", "codes.vectors"]


def at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def loaded(*words: str) -> cfg.Config:
    return cfg.load(["data.source=table", "data.path=x", *words])


@pytest.mark.parametrize("text", ODD)
def test_13_a_word_is_its_text_where_the_key_is_text(text, tmp_path):
    for key in TEXTS:
        config = loaded(f"{key}={text}")
        assert at(config, key) == text
        (tmp_path / "c.yaml").write_text(cfg.dump(config), encoding="utf-8")
        assert cfg.load([str(tmp_path / "c.yaml")]) == config


@pytest.mark.parametrize("text", [text for text in ODD if not text.startswith("~") and "\t" not in text])
def test_13_a_path_is_a_path(text, tmp_path):
    for key in PATHS:
        config = loaded(f"{key}={text}")
        assert at(config, key) == Path(text)
        (tmp_path / "c.yaml").write_text(cfg.dump(config), encoding="utf-8")
        assert cfg.load([str(tmp_path / "c.yaml")]) == config


def test_which_keys_are_text_follows_from_their_types():
    """No list of keys: of every knob, by the names of its type alone."""
    seen = set()

    def look(section, before):
        for name, hint in hints._fields(section).items():
            sections = [kind for kind in hints._kinds(hint) if isinstance(kind, type) and hasattr(kind, "__slots__")]
            sections = [kind for kind in sections if kind.__module__ == "distrec.knobs"]
            for kind in sections:
                look(kind, f"{before}{name}.")
            if not sections and hints.is_text(hint):
                assert not re.search(r"\b(int|float|bool)\b", str(hint)), (before, name)
                seen.add(f"{before}{name}")

    look(cfg.Config, "")
    assert {
        *TEXTS,
        *PATHS,
        "data.source",
        "embed.encoder",
        "model.backbone.path",
        "model.items",
        "train.precision",
    } <= seen
    assert not {"seed", "train.lr", "model.d_model", "train.betas", "embed.normalize", "model.name.x"} & seen


def test_the_classes_of_a_section_agree_on_what_is_text():
    for union in (knobs.Model, knobs.Codes):
        for name in hints.names(union):
            each = [hints._fields(kind)[name] for kind in get_args(union) if name in hints._fields(kind)]
            assert len({hints.is_text(hint) for hint in each}) == 1, name


def test_no_choice_is_called_as_the_words_for_none_are():
    for section in (*get_args(knobs.Model), *get_args(knobs.Codes), knobs.Data, knobs.Embed, knobs.Train, knobs.Score):
        for name, hint in hints._fields(section).items():
            choices = {
                str(c).lower() for kind in hints._kinds(hint) if get_origin(kind) is Literal for c in get_args(kind)
            }
            assert not (hints.is_optional(hint) and {"null", "none"} & choices), name


@pytest.mark.parametrize("word", ["null", "none", "None", "NULL"])
def test_null_and_none_are_no_value_where_there_may_be_none(word):
    config = loaded(
        "out=x", f"out={word}", f"codes.category={word}", f"data.k_core={word}", f"data.columns.user={word}"
    )
    assert (config.out, config.codes.category, config.data.k_core) == (None, None, None)
    assert config.data.columns.user == word
    assert loaded(f"out=./{word}").out == Path(word)


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("out=", "out= has no value; out=null is none"),
        ("data.text=", "data.text= has no value"),
        ("train.lr=", "train.lr= has no value"),
        ("out.x=1", "unknown config key 'out.x'; out is no section"),
        ("data.path.x.y=1", "data.path is no section"),
        ("sedd=a #b", "did you mean 'seed'?"),
        ("data.colums.user=[", "did you mean 'data.columns'?"),
        ("model.d_modl=: {", "did you mean 'model.d_model'?"),
        ("train.epochs=3 # three", "# three would be left out as a comment"),
        ("train.trackers=[wandb] # and more", "# and more would be left out"),
        ("train.epochs=010.5", "train.epochs=10.5"),
        ("train.epochs=1:30", "train.epochs='1:30'"),
        (
            "train.trackers=wandb,tensorboard",
            "train.trackers.0='wandb,tensorboard': Input should be 'tensorboard' or 'wandb'",
        ),
        ("train.trackers=tensorbord", "train.trackers.0='tensorbord'"),
        ("out=a\nb", "no line breaks or control characters"),
        ("out=a\udcffb", "is not UTF-8"),
        ("data.text", "'data.text' is neither FILE.yaml nor"),
    ],
)
def test_what_no_key_takes_is_refused_in_a_line(word, why):
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        loaded(word)
    assert "\n" not in str(caught.value)


def test_numbers_and_lists_are_yaml_as_people_read_it():
    config = loaded(
        "train.epochs=010", "seed=012", "train.lr=1e-4", "train.betas=[0.5, 9e-1]", "embed.normalize=no",
        "train.async_save=yes", "data.synthetic={users: 50, items: 30}",
    )  # fmt: skip
    assert (config.train.epochs, config.seed, config.train.lr, config.train.betas) == (10, 12, 1e-4, (0.5, 0.9))
    assert (config.embed.normalize, config.train.async_save, config.data.synthetic.users) == (False, True, 50)


@pytest.mark.parametrize(
    ("word", "trackers"),
    [("wandb", ("wandb",)), ("[wandb,tensorboard]", ("wandb", "tensorboard")), ("[]", ()), ("['wandb']", ("wandb",))],
)
def test_23_a_list_of_texts_may_be_one_text(word, trackers, tmp_path):
    assert loaded(f"train.trackers={word}").train.trackers == trackers
    (tmp_path / "a.yaml").write_text(f"train: {{trackers: {word}}}\n")
    assert loaded(str(tmp_path / "a.yaml")).train.trackers == trackers


def test_members_of_a_list_of_texts_are_text():
    words = [
        "model.name=frellm",
        "model.backbone.tune=lora",
        "model.backbone.lora_modules=[2024-05-01, 007, yes, 'a, b']",
    ]
    assert loaded(*words).model.backbone.lora_modules == ("2024-05-01", "007", "yes", "a, b")


PLAIN = ["2024-05-01", "20240501", "007", "1e3", "1_000", "0x10", "0o7", "12:30", "yes", "No", "on", "true", "a b", ".nan", "1", "a#b", "None", "=", "<<"]  # fmt: skip


@pytest.mark.parametrize("text", PLAIN)
def test_13_an_unquoted_value_of_a_file_is_the_text_that_stands_there(text, tmp_path):
    (tmp_path / "a.yaml").write_text(
        f"out: {text}\ndata: {{columns: {{user: {text}}}, text: {text}}}  # a comment\ncodes:\n  category: {text}  # one more\n"
    )
    config = loaded(str(tmp_path / "a.yaml"))
    assert (config.out, config.data.columns.user, config.data.text) == (Path(text), text, text)
    assert config.codes.category == text


def test_13_files_know_quotes_nulls_and_anchors(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "out: ~\ndata:\n  columns: &c {user: 'null', item: \"~\", time: '#1'}\n  text: |\n    a: b\n"
        "codes: {category: Null, vectors:  }\nembed: {revision: *r}\n".replace("*r", "&r 007")
        + "model: {name: frellm, backbone: {revision: *r}}\n"
    )
    config = loaded(str(tmp_path / "a.yaml"))
    assert (config.out, config.codes.category, config.codes.vectors) == (None, None, None)
    assert config.data.columns == knobs.Columns(user="null", item="~", time="#1")
    assert config.data.text == "a: b\n"
    assert (config.embed.revision, config.model.backbone.revision) == ("007", "007")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("out: runs/try #2\n", "line 1: not YAML: #2 begins a comment; quote"),
        ("seed: 1\ndata: {root: a, path: b #c\n}\n", "line 2: not YAML: #c begins a comment"),
        ("data:\n  text: {title}\n", "line 2: not YAML: a text that YAML takes for a mapping; quote"),
        ("data:\n  text: [title]\n", "line 2: not YAML: a text that YAML takes for a list; quote"),
        ("data:\n  text: {title}. {brand}\n", "line 2: not YAML"),
        ("data:\n  path: a: b\n", "line 2: not YAML: mapping values are not allowed here; quote"),
        ("data:\n  path: *a\n", "line 2: not YAML"),
        ("data:\n  path: !a b\n", "line 2: not YAML: could not determine a constructor"),
        ("data:\n  columns: {user: null}\n", "data.columns.user=None"),
        ("data: {text: }\n", "data.text=None"),
        ("out: &a [*a]\n", "line 1"),
        ("? [a]\n: b\n", "line 1: not YAML: a key is a word"),
        ("seed: &a [*a]\n", "line 1: not YAML: more than 100,000 values"),
    ],
)
def test_13_what_a_file_cannot_say_unquoted_is_named_with_its_line(text, why, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        loaded(str(tmp_path / "a.yaml"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", [*PATHS, "embed.encoder", "model.backbone.path"])
def test_14_a_tilde_at_the_head_of_a_path_is_the_home_folder(key, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    section, _, name = key.rpartition(".")
    base = ["model.name=frellm"] if key.startswith("model") else []
    user = pwd.getpwuid(os.getuid())
    places = {"~/a b": f"{tmp_path}/a b", "~": str(tmp_path), f"~{user.pw_name}/x": f"{user.pw_dir}/x", "a/~": "a/~"}
    for text, right in places.items():
        (tmp_path / "a.yaml").write_text(
            yaml.safe_dump({section: {name: text}} if section and "." not in section else _nested(key, text))
        )
        for words in ([f"{key}={text}"], [str(tmp_path / "a.yaml")]):
            assert str(at(loaded(*base, *words), key)) == right
        assert str(at(cfg.load([*base, "data.source=table", "data.path=x"], {key: text}), key)) == right


def _nested(key, value):
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def test_14_an_unquoted_tilde_is_null_where_there_may_be_none_and_home_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text("out: ~\ndata: {root: ~}\n")
    config = loaded(str(tmp_path / "a.yaml"))
    assert (config.out, config.data.root) == (None, tmp_path)
    assert loaded("out=~").out == tmp_path
    assert loaded("data.text=~/x", "data.columns.user=~").data.text == "~/x"


@pytest.mark.parametrize("where", ["word", "file"])
@pytest.mark.parametrize(
    ("text", "why"),
    [("~nobody-here/x", "out=~nobody-here/x: ~nobody-here has no home folder"), ("$HOME/x", "$HOME is left to a shell"),
     ("/scratch/${HOME}/x", "${HOME} is left to a shell"), ("a/x$HOME", "x$HOME is left to a shell")],
)  # fmt: skip
def test_14_what_only_a_shell_would_fill_in_is_refused(text, why, where, tmp_path):
    (tmp_path / "a.yaml").write_text(f"out: {text}\n")
    with pytest.raises(ValueError, match=re.escape(why)):
        loaded(f"out={text}" if where == "word" else str(tmp_path / "a.yaml"))


def test_14_folders_that_are_called_so_can_be_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "$HOME").mkdir()
    assert loaded("out=$HOME/x").out == Path("$HOME/x")
    config = loaded("out=./~x", "data.root=runs/$NOT_SET_AT_ALL")
    assert (config.out, config.data.root) == (tmp_path / "~x", Path("runs/$NOT_SET_AT_ALL"))
    (tmp_path / "c.yaml").write_text(cfg.dump(config))
    assert cfg.load([str(tmp_path / "c.yaml")]) == config


def test_lists_of_paths_are_lists_of_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    several: Any = Path | tuple[Path, ...] | None
    assert hints.takes_text(several)
    assert hints.settled(["~/a", "b"], several) == ["/h/a", "b"]
    assert hints.settled("~/a", several) == "/h/a"
    assert hints.settled("~/a", tuple[Path, ...]) == ["/h/a"]
    assert hints.settled({"a": "~/a"}, dict[str, Path]) == {"a": "/h/a"}
    assert hints.settled("~/a", str | None) == "~/a"
    assert hints.is_text(Literal["a", "b"] | None)
    assert not hints.is_text(Literal["a", 1])
    assert not hints.takes_text(int | Literal["auto"])
    assert not hints.takes_text(tuple[int, ...])
    assert hints.element(tuple[int, str], 5) is str
    assert hints._kinds(Union[Annotated[str, Path], types.NoneType]) == (Path, types.NoneType)  # noqa: UP007


def test_a_text_or_a_mapping_is_a_text_unless_it_is_a_mapping(tmp_path):
    for text in ("a >= 4 and b in x: y, #2", '"a b" >= 4', "2024", "2024-05-01", "[a"):
        assert loaded(f"data.where={text}").data.where == text
    assert loaded("data.where={a: '>= 4', b: [x, 007]}").data.where == {"a": ">= 4", "b": ["x", "007"]}
    (tmp_path / "a.yaml").write_text("data: {where: 2024}\n")
    assert loaded(str(tmp_path / "a.yaml")).data.where == "2024"
    with pytest.raises(ValueError, match="not YAML"):
        loaded("data.where={a: '>= 4'")
    assert hints.opens(str | None) == ()
    assert hints.opens(tuple[str, ...] | dict[str, int] | None) == ("[", "{")


def test_the_values_of_a_space_are_those_of_its_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    (tmp_path / "s.yaml").write_text(
        "model: {name: tiger}\nsweep: {space: {codes.category: [007, null, yes, 2024-05-01], model: {codes: [~/a, b]}, train.lr: [1e-3, 2]}}\n"
    )
    _, space = space_of(["data.synthetic.users=150", str(tmp_path / "s.yaml")])
    assert space == {
        "codes.category": ("007", None, "yes", "2024-05-01"), "model.codes": ("/h/a", "b"), "train.lr": (1e-3, 2),
    }  # fmt: skip
    _, space = space_of(["model.name=tiger", "sweep.space.codes.category=[1e3, 'a, b']", "sweep.out=~/s"])
    assert space == {"codes.category": ("1e3", "a, b")}


@pytest.mark.parametrize("key", ["out", "data.root", "data.path", "embed.encoder"])
def test_34_an_address_is_no_path(key):
    with pytest.raises(ValueError, match=rf"^{key}=s3://b/c: remote paths are not read or written"):
        cfg.load([f"{key}=s3://b/c"])
