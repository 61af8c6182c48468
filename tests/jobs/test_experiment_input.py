"""What an experiment refuses before it trains anything."""

import time

import pytest
import yaml
from tqdm import tqdm

from distrec.data import store
from distrec.jobs import experiment
from distrec.jobs.claims import job, runs

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
        second.judge(tqdm(disable=True), [])
    assert first.judge(tqdm(disable=True), [])
    assert [path.name for path in tmp_path.iterdir()] == ["sasrec-1.log"]
