"""Where the commands that read a run look: a home folder for ~, and a folder's name to its last character."""

import re

import pytest
import yaml

from distrec import config as cfg
from distrec.jobs import analyze, compare, evaluate, quantize, recommend, report
from distrec.jobs.pages import run_facts


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(cfg.dump(cfg.load(["model.name=markov"])))
    monkeypatch.chdir(tmp_path / "run")
    return tmp_path


@pytest.mark.parametrize(
    ("main", "words", "why"),
    [
        (evaluate.main, ["out=~/none"], "out='{home}/none' is no run folder"),
        (recommend.main, ["out=~/none"], "out='{home}/none' is no run folder"),
        (recommend.main, ["out=~/run", "histories=~/h #1.jsonl"], "histories={home}/h #1.jsonl: no such file"),
        (recommend.main, ["out=~/run", "to=~/none/x.jsonl"], "to={home}/none/x.jsonl: no file can be written there"),
        (analyze.main, ["out=~/none"], "out='{home}/none' is no finished run"),
        (analyze.main, ["out=~/none #2"], "out='{home}/none #2' is no finished run"),
        (report.main, ["~/none"], "{home}/none: no such folder"),
        (report.main, ["~/run", "out=~/none/x.html"], "out={home}/none/x.html: no file can be written there"),
        (compare.main, ["~/none"], "{home}/none is no finished run"),
        (compare.main, ["name:~/none"], "{home}/none is no finished run"),
        (compare.main, ["name:~/run"], "{home}/run is no finished run"),
        (compare.main, ["name:~nobody-here/x"], "~nobody-here has no home folder"),
        (quantize.main, ["--assign-only=~/none"], "--assign-only={home}/none: no such folder"),
    ],
)
def test_14_every_command_looks_for_a_tilde_in_the_home_folder(home, main, words, why):
    with pytest.raises(ValueError, match=re.escape(why.format(home=home))):
        main(words)


def test_14_a_list_of_items_may_lie_at_home(home):
    with pytest.raises(ValueError, match=r"histories=.*no such file"):
        recommend.main(["out=~/run", "among=~/a.txt", "histories=nowhere"])
    assert recommend.placed({"among": "~/a.txt", "k": "~"}, "among") == {"among": f"{home}/a.txt", "k": "~"}


def test_13_a_run_folder_may_be_called_after_its_setting(home, monkeypatch):
    monkeypatch.chdir(home)
    (home / "run").rename(home / "lr=0.1")
    assert run_facts.read(home.joinpath("lr=0.1").relative_to(home)).config.model.name == "markov"
    (home / "seed=3.yaml").write_text(yaml.safe_dump({"seed": 4}))
    assert cfg.load(["seed=3.yaml"]).seed == 4
    with pytest.raises(ValueError, match=r"seed='5.yaml'"):
        cfg.load(["seed=5.yaml"])
