"""What an experiment refuses before it trains anything."""

import time
from dataclasses import replace

import pytest
import yaml

from distrec.data import store
from distrec.jobs import experiment
from distrec.jobs.analysis.subject import SETTINGS, code
from distrec.jobs.claims import job, runs, told, verdict
from distrec.jobs.pages import page
from distrec.jobs.pages.page import Picture, Section, Text

JUDGE = {"that": "t", "of": "a", "metric": "ndcg@10", "above": 0}
FIGURE = {"that": "t", "of": "a", "figure": ["spectra", "low"], "above": 0}


def loaded(tmp_path, runs, *judges):
    own = {"claim": "c", "source": "s", "runs": runs, "judge": list(judges)}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump({"model": {"name": "sasrec"}, "experiment": own}))
    return job.load([str(tmp_path / "e.yaml")])


@pytest.mark.parametrize(
    ("runs", "judge", "told"),
    [
        ({"a": {}}, {**JUDGE, "abov": 1}, "did you mean 'experiment.judge.0.above'"),
        ({"a": {}}, {**FIGURE, "figure": []}, "begins with a part of analyze"),
        ({"a": {}}, {**FIGURE, "part": []}, "begins with a part of analyze"),
        ({"a": {}}, {**FIGURE, "part": ["moon"]}, "begins with a part of analyze"),
        ({"a": {}}, {**JUDGE, "above": float("nan")}, "finite"),
        ({"a": {}}, {**JUDGE, "aside": True}, "nothing would decide"),
        ({"a": {"seed": 3}}, JUDGE, "seed is the experiment's"),
        ({"a": {"out": "x"}}, JUDGE, "out is the experiment's"),
        ({"a": {}, "b": {}}, JUDGE, "b: the same config as a"),
        ({"a": {}, "": {}}, JUDGE, "has no name"),
        ({"a": {}, "b": {"score": {"mask_history": False}}}, JUDGE, "b: another score than a"),
        ({"a": {}, "b": {"data": {"synthetic": {"users": 9}}}}, JUDGE, "b: another data than a"),
    ],
)
def test_a_wrong_file_is_told_in_a_line(tmp_path, runs, judge, told):
    with pytest.raises(ValueError, match=told) as error:
        loaded(tmp_path, runs, judge)
    assert "\n" not in str(error.value)
    assert "at least 1 item" not in str(error.value)


def test_parts_that_only_divide_are_analysed_too(tmp_path):
    found = loaded(tmp_path, {"a": {}}, {**FIGURE, "part": ["cost", "step"]})
    assert job.parts(found) == ["spectra", "cost"]


def test_a_verdict_takes_no_artefacts_place(tmp_path):
    def fill(folder):
        (folder / "a").write_text("a")

    store.write(tmp_path / "prepared-1", {"config": 1}, fill)
    store.write(tmp_path / "verdict", {"experiment": 1}, fill)
    for place in ("prepared-1", "prepared-1/sub/verdict"):
        with pytest.raises(ValueError, match="choose another folder"):
            experiment.check(tmp_path / place)
    experiment.check(tmp_path / "verdict")
    experiment.check(tmp_path / "new")
    store.verify(tmp_path / "prepared-1")


def test_who_is_at_work_on_the_same_run_reads_its_own_log(tmp_path):
    """One is told that the other is busy, and asks again; the other's words do not hide it."""
    run = runs.Planned("a", 0, tmp_path / "sasrec-1", (), (), frozenset())
    first, second = (runs.Waiting(run, [("config",)]), runs.Waiting(run, [("no such job",)]))
    for each in (first, second):
        each.start(1)
    while first.code() is None or second.code() is None:
        time.sleep(0.1)
    with pytest.raises(runs.Lost, match="no such job"):
        second.judge()
    assert first.judge()
    assert [path.name for path in tmp_path.iterdir()] == ["sasrec-1.log"]


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """In place of distrec: a command that ends at once, or, where it is slow, in a minute."""
    script = tmp_path / "command"
    script.write_text('#!/bin/sh\ncase "$*" in *slow*) exec sleep 60;; *bad*) exit 3;; esac\n')
    script.chmod(0o755)
    monkeypatch.setattr(runs.sys, "executable", str(script))
    monkeypatch.setattr(runs, "_GRACE", 5)

    def planned(*names):
        return [runs.Planned(name, 0, tmp_path / f"sasrec-{name}", (name,), (), frozenset()) for name in names]

    return planned


def test_each_run_is_checked_when_it_is_done(commands):
    seen = []
    assert runs.carry_out(commands("a", "b", "c"), 2, lambda: False, lambda run: seen.append(run.name))
    assert sorted(seen) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "error", "told"), [("wrong", ValueError, "no such figure"), ("bad", runs.Lost, "bad")]
)
def test_what_fails_stops_the_others_at_once(commands, tmp_path, name, error, told):
    def check(run):
        raise ValueError("no such figure")

    began = time.monotonic()
    with pytest.raises(error, match=told):
        runs.carry_out(commands("slow", name, "never"), 2, lambda: False, check)
    assert time.monotonic() - began < 20
    assert sorted(path.name for path in tmp_path.glob("*.log")) == sorted(["sasrec-slow.log", f"sasrec-{name}.log"])


def test_a_stop_ends_what_is_at_work(commands):
    began = time.monotonic()
    assert not runs.carry_out(commands("slow", "slow2"), 2, lambda: time.monotonic() > began + 1)
    assert time.monotonic() - began < 20


def test_a_missing_figure_is_told_once_a_run_of_it_is_there(tmp_path):
    own = loaded(tmp_path, {"a": {}, "b": {"model": {"dropout": 0.4}}}, FIGURE).experiment
    run = runs.Planned("a", 0, tmp_path / "run", (), (), frozenset())
    (run.folder / "analysis").mkdir(parents=True)
    (run.folder / "analysis/analysis.json").write_text('{"spectra": {"high": 1}}')
    with pytest.raises(ValueError, match="no figure spectra → low"):
        verdict.check(own, run)
    verdict.check(own, replace(run, name="b"))  # of which nothing is asked


def test_an_analysis_with_other_settings_is_made_again(tmp_path):
    run = runs.Planned("a", 0, tmp_path / "run", ("train",), ("analyze",), frozenset({"cost"}))
    store.write(run.folder / "sub", {}, lambda folder: None)
    store.stamp_files(run.folder, {}, [])
    made = {"parts": ["spectra", "cost"], "run": store.content(run.folder), "code": code(), **SETTINGS}
    for more, left in (({}, []), ({"users": 5}, [("analyze",)]), ({"against": "x"}, [("analyze",)])):
        store.write(run.folder / "analysis", {**made, **more}, lambda folder: None, replace=True)
        assert run.left() == left


def test_a_verdict_shows_what_its_runs_were_analysed_for(tmp_path):
    """Of the first seed of each run, the parts that judges ask for; pictures come along under names of their own."""

    def fill(folder):
        for kind in ("svg", "png"):
            (folder / f"seen.{kind}").write_text(folder.name)
        sections = tuple(Section(name, (Text(name), Picture("seen", "a picture"))) for name in ("Energy", "Cost"))
        page.write(folder, page.Page("Analysis", sections))

    planned = [
        runs.Planned(name, seed, tmp_path / f"{name}{seed}", (), (), frozenset({"spectra"}))
        for seed in (3, 1)
        for name in ("a", "b")
    ]
    for run in planned:
        store.write(run.folder / "analysis", {"parts": ["spectra", "cost"], "run": run.name}, fill)
    (tmp_path / "out").mkdir()
    found = list(told.analyses(planned, tmp_path / "out"))
    assert [section.title for section in found] == ["a, seed 3: Energy", "b, seed 3: Energy"]
    assert [section.blocks[1].name for section in found] == ["run0-seen", "run1-seen"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"run{n}-seen.{kind}" for n in (0, 1) for kind in ("png", "svg")
    ]
    assert not list(told.analyses([replace(run, parts=frozenset()) for run in planned], tmp_path / "out"))
