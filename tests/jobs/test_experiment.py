"""Experiments: what a verdict says of numbers, what is refused beforehand, and a whole one that is killed on its way."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import yaml
from commands import distrec

from distrec.data import store
from distrec.engine.evaluation import metrics
from distrec.jobs.claims import job as claims
from distrec.jobs.claims import verdict
from distrec.jobs.claims.job import Judge
from distrec.jobs.claims.runs import Planned

FILE = {
    "experiment": {
        "claim": "more dropout is better",
        "source": "nobody",
        "runs": {"little": {}, "much": {"model": {"dropout": 0.5}}},
        "seeds": [0, 1],
        "judge": [
            {"that": "NDCG@10, much less little", "of": "much", "versus": "little", "metric": "ndcg@10", "above": 0},
            {"that": "constant's share", "of": "much", "figure": ["spectra", "low", "time", "stages", "constant"], "above": 0.99},
        ],
    },
    "data": {"negatives": 0, "synthetic": {"users": 150, "items": 100}},
    "model": {"name": "sasrec", "d_model": 16},
    "train": {"epochs": 2, "batch_tokens": 500},
    "score": {"bootstrap": 0},
}  # fmt: skip


def file(folder, **more):
    tree = json.loads(json.dumps(FILE))
    tree["experiment"] |= more
    (folder / "e.yaml").write_text(yaml.safe_dump(tree))
    return str(folder / "e.yaml")


@pytest.mark.parametrize(
    ("bound", "interval", "said"),
    [
        ({"above": 0}, (0.1, 0.3), "confirmed"),
        ({"above": 0}, (-0.1, 0.3), "undecided"),
        ({"above": 0}, (-0.3, -0.1), "refuted"),
        ({"above": 0.7}, (0.1, 0.3), "refuted"),
        ({"below": 0.5}, (0.1, 0.3), "confirmed"),
        ({"below": 0.2}, (0.1, 0.3), "undecided"),
        ({"below": 0.1}, (0.1, 0.3), "refuted"),
        ({"above": 0}, None, "undecided"),
        ({"above": 0}, (float("nan"), float("nan")), "undecided"),
    ],
)
def test_a_verdict_is_where_the_whole_interval_lies(bound, interval, said):
    value = 0.0 if interval is None else sum(interval) / 2
    assert verdict.decided(Judge(that="x", of="a", metric="mrr", **bound), value, interval) == said


def test_one_refutation_refutes_and_asides_do_not_count():
    judge = Judge(that="x", of="a", metric="mrr", above=0)
    found = {said: verdict.Finding(judge, 0.0, None, said) for said in ("confirmed", "refuted", "undecided")}
    aside = found["refuted"]._replace(judge=replace(judge, aside=True))
    assert verdict.overall([found["confirmed"], aside]) == "confirmed"
    assert verdict.overall([found["confirmed"], found["undecided"]]) == "undecided"
    assert verdict.overall([found["confirmed"], found["undecided"], found["refuted"]]) == "refuted"


def made(folder, name, seed, rank, figure):
    """A run with these ranks, whose analysis has this figure."""
    (folder / "analysis").mkdir(parents=True)
    users = [f"u{i:04}" for i in range(len(rank))]
    pl.DataFrame({"user": users, "target": users, **metrics.Standing(rank - 1, 0 * rank).columns()}).write_parquet(
        folder / "ranks.parquet"
    )
    (folder / "analysis/analysis.json").write_text(json.dumps({"spectra": {"low": [figure, 2.0]}}))
    return Planned(name, seed, folder, (), (), frozenset())


@pytest.fixture
def runs(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.integers(1, 40, 800).astype(float)
    return [
        made(tmp_path / f"{name}{seed}", name, seed, np.maximum(1, base - gain + rng.integers(0, 2, 800)), share + seed / 100)
        for name, gain, share in (("plain", 0, 0.2), ("better", 6, 0.5))
        for seed in (0, 1, 2)
    ]  # fmt: skip


def found(runs, **judge):
    own = claims.Experiment(
        claim="c", source="s", runs={"plain": {}, "better": {}}, judge=(Judge(that="x", **judge),), seeds=(0, 1, 2)
    )
    return verdict.findings(own, runs)[0]


def test_metrics_are_paired_over_users_and_seeds(runs):
    told = found(runs, of="better", versus="plain", metric="hr@10", above=0)
    ranks = {name: [metrics.standing(pl.read_parquet(run.folder / "ranks.parquet")) for run in runs if run.name == name] for name in ("plain", "better")}  # fmt: skip
    means = {name: np.mean([metrics.per_user(rank)["hr@10"].mean() for rank in each]) for name, each in ranks.items()}
    assert told.value == pytest.approx(means["better"] - means["plain"])
    assert told.interval[0] < told.value < told.interval[1]
    assert told.verdict == "confirmed"
    ratio = found(runs, of="better", versus="plain", ratio=True, metric="hr@10", below=1)
    assert ratio.value == pytest.approx(means["better"] / means["plain"])
    assert ratio.verdict == "refuted"
    assert found(runs, of="plain", versus="plain", metric="hr@10", above=0).value == 0
    nothing = Judge(that="x", of="a", versus="b", ratio=True, metric="mrr", above=0)
    assert np.isnan(verdict.over_users_and_seeds(nothing, np.stack([np.ones((2, 9)), np.zeros((2, 9))]))[0])


@pytest.mark.parametrize("of_seeds", [0.0, 0.03])
def test_where_nothing_is_true_one_verdict_in_twenty_is_given(of_seeds):
    """Differences of two and three seeds, with and without a spread between seeds."""
    rng, judge, decided = np.random.default_rng(0), Judge(that="x", of="a", versus="b", metric="mrr", above=0), 0
    for trial in range(100):
        seeds = 2 + trial % 2
        values = 0.1 + of_seeds * rng.standard_normal((2, seeds, 1)) + 0.3 * rng.standard_normal((2, 1, 300))
        value, interval = verdict.over_users_and_seeds(judge, values)
        decided += verdict.decided(judge, value, interval) != "undecided"
    assert 1 <= decided <= 13  # 5 are expected


def test_one_seed_decides_nothing():
    judge = Judge(that="x", of="a", metric="mrr", above=0)
    assert verdict.over_users_and_seeds(judge, np.ones((1, 1, 5))) == (1.0, None)


def test_figures_have_students_interval_over_seeds_of_the_same_number(runs):
    from scipy import stats

    told = found(runs, of="plain", figure=("spectra", "low", "0"), above=0)
    low, high = stats.t.interval(0.95, 2, 0.21, 0.01 / 3**0.5)
    assert told.value == pytest.approx(0.21)
    assert told.interval == (pytest.approx(low), pytest.approx(high))
    difference = found(runs, of="better", versus="plain", figure=("spectra", "low", "0"), above=0)
    assert difference.value == pytest.approx(0.3)
    assert difference.interval[1] - difference.interval[0] < 1e-6  # seeds go with their own
    part = found(runs, of="plain", figure=("spectra", "low", "0"), part=("spectra", "low", "1"), above=0)
    assert part.value == pytest.approx(0.105)
    constant = found(runs, of="plain", figure=("spectra", "low", "1"), above=0)
    assert (constant.interval, constant.verdict) == (None, "undecided")  # nothing is known of its spread
    with pytest.raises(ValueError, match="no figure spectra → high"):
        found(runs, of="plain", figure=("spectra", "high"), above=0)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"runs": {}}, "experiment.runs is empty"),
        ({"runs": {"little": {}, "much": {"model": {"dropuot": 0.5}}}}, "did you mean 'model.dropout'"),
        ({"seeds": [1, 1]}, "a seed stands twice"),
        ({"seeds": []}, "at least 1"),
        ({"metric": "ndcg"}, "experiment.metric=ndcg"),
        ({"against": "none"}, "no run 'none'"),
        ({"judge": [{"that": "x", "of": "moon", "metric": "mrr", "above": 0}]}, "no run 'moon'"),
        ({"judge": [{"that": "x", "of": "much", "metric": "mrr"}]}, "above or below"),
        ({"judge": [{"that": "x", "of": "much", "metric": "mrrr", "above": 0}]}, "metric mrrr"),
        ({"judge": [{"that": "x", "of": "much", "figure": ["moon"], "above": 0}]}, "a part of analyze"),
        ({"judge": [{"that": "x", "of": "much", "above": 0}]}, "a metric or a figure"),
        ({"judge": [{"that": "x", "of": "much", "metric": "mrr", "ratio": True, "above": 0}]}, "versus"),
        ({"colour": "red"}, "unknown config key 'experiment.colour'"),
    ],
)
def test_what_cannot_be_tried_is_told_before_anything_is_trained(tmp_path, more, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        claims.load([file(tmp_path, **more)])


def test_it_is_told_in_a_line(tmp_path):
    done = distrec("experiment", file(tmp_path, against="none"), cwd=tmp_path, code=2)
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.yaml"]


def started(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "distrec.jobs", "experiment", file(folder), "experiment.jobs=2"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.slow
def test_an_experiment_goes_on_after_a_kill_and_refuses_what_was_changed(tmp_path):
    for number, code in ((signal.SIGTERM, 75), (signal.SIGKILL, -9)):
        process = started(tmp_path)
        end = time.monotonic() + 240
        while not list(tmp_path.glob("experiments/runs/*/checkpoints/step-*")) and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.05)
        os.kill(process.pid, number)
        assert process.wait(120) == code
    done = distrec("experiment", file(tmp_path), "experiment.jobs=2", cwd=tmp_path)
    out = tmp_path / "experiments/e"
    told = json.loads((out / "verdict.json").read_text())
    assert [each["verdict"] for each in told["findings"]][1] in ("confirmed", "undecided")
    assert told["findings"][1]["value"] == pytest.approx(1)
    assert told["verdict"] in done.stdout.lower()
    assert {"run0-energy_by_layer.svg", "run1-energy_by_layer.png"} <= {path.name for path in out.iterdir()}
    assert len(list(tmp_path.glob("experiments/runs/*/stamp.json"))) == 4
    stamp = (out / "stamp.json").read_bytes()
    distrec("experiment", file(tmp_path), cwd=tmp_path)
    assert (out / "stamp.json").read_bytes() == stamp
    distrec("report", "experiments/e", "out=v.html", cwd=tmp_path)
    assert "more dropout is better" in (tmp_path / "v.html").read_text()
    ranks = next(tmp_path.glob("experiments/runs/*/ranks.parquet"))
    whole = ranks.read_bytes()
    ranks.write_bytes(whole[:-9] + b"x" + whole[-8:])
    refused = distrec("experiment", file(tmp_path), cwd=tmp_path, code=2)
    assert "ranks.parquet" in refused.stderr
    ranks.write_bytes(whole)
    picture = next(tmp_path.glob("experiments/runs/*/analysis/energy_by_layer.svg"))
    picture.write_text(picture.read_text() + " ")
    refused = distrec("experiment", file(tmp_path), cwd=tmp_path, code=2)
    assert "energy_by_layer.svg" in refused.stderr
    assert store.verify(out)
