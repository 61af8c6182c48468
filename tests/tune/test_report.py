"""What a sweep makes of its trials: the best point, its spread, the epoch that counts, and what is kept."""

import json

import numpy as np
import pytest

from distrec import config as cfg
from tune import report
from tune.space import load
from tune.trial import ENDED, Trial, environment


def job(*words):
    return load(["data.synthetic.users=60", "sweep.space.train.lr=[0.1, 0.2]", *words])[0]


def trial(lr, seed, value, status="done"):
    return {"point": {"train.lr": lr}, "seed": seed, "value": value, "status": status}


def test_points_come_by_their_mean_the_best_first_and_lost_ones_last():
    trials = [
        trial(0.1, 0, 0.2), trial(0.2, 0, 0.5), trial(0.3, 0, None, "failed"), trial(0.1, 1, 0.4), trial(0.2, 1, None, "failed"),
        trial(0.4, 0, 0.9), trial(0.4, 1, 0.7), trial(0.5, 0, 0.0), trial(0.5, 1, 0.0),
    ]  # fmt: skip
    points = report.by_point(trials)
    assert [point["point"]["train.lr"] for point in points[:3]] == [0.4, 0.1, 0.5]
    assert {point["point"]["train.lr"] for point in points[3:]} == {0.2, 0.3}
    assert [point["mean"] for point in points] == [pytest.approx(0.8), pytest.approx(0.3), 0.0, None, None]
    assert points[0]["std"] == pytest.approx(np.std([0.9, 0.7], ddof=1))
    assert next(p for p in points if p["point"]["train.lr"] == 0.2)["std"] is None
    lines = report.markdown(points, ["train.lr"], job().sweep).splitlines()
    assert lines[4] == "| 0.4 | 0.8000 | 0.1414 | 2 done |"
    told = report.markdown(points, ["train.lr"], job().sweep, 0.181).splitlines()
    assert told[1].startswith("18.1% of the targets are items that the user has had before")
    assert [told[0], *told[2:]] == lines
    assert lines[-2:] == ["| 0.2 | – | – | 1 done, 1 failed |", "| 0.3 | – | – | 1 failed |"]


@pytest.mark.parametrize("metric", ["ndcg@10", "hr@1"])
def test_a_trial_is_told_by_the_checkpoint_that_is_kept(tmp_path, metric):
    one = Trial.of({"train.lr": 0.1}, 3, tmp_path)
    one.folder.mkdir(parents=True)
    values = [(0.1, 0.9), (0.4, 0.2), (0.4, 0.3), (0.2, 0.8)]
    repeats = {"repeats": 0.25} if metric == "ndcg@10" else {}  # absent where nothing repeats
    lines = [
        {"event": "valid", "epoch": n + 1, "ndcg@10": a, "hr@1": b, "mrr": 0.5, "step": 7} | repeats
        for n, (a, b) in enumerate(values)
    ]
    text = "".join(json.dumps(line) + "\n" for line in [{"event": "train"}, *lines])
    (one.folder / "metrics.jsonl").write_text(text + '{"event": "valid", "ndcg@10": 1')
    one.end("done", metric)
    told = one.outcome()
    assert told["repeats"] == (0.25 if metric == "ndcg@10" else 0)
    assert (told["value"], told["epoch"], told["epochs"]) == (0.4 if metric == "ndcg@10" else 0.2, 2, 4)
    assert told["valid"] == {"ndcg@10": 0.4, "hr@1": 0.2, "mrr": 0.5}
    other = Trial.of({"train.lr": 0.1}, 4, tmp_path)
    assert other.folder != one.folder
    other.end("failed", metric, "why")
    assert other.outcome() | {"value": None, "epochs": 0, "why": "why", "valid": {}} == other.outcome()


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 9])
def test_the_best_trials_keep_their_checkpoints(tmp_path, keep):
    from tune.sweep import prune

    values = [0.1, None, 0.5, 0.3, 0.0]
    for n, value in enumerate(values):
        folder = tmp_path / f"trials/{n}"
        (folder / "checkpoints").mkdir(parents=True)
        (folder / ENDED).write_text(json.dumps(trial(n, 0, value)))
    prune(tmp_path, keep)
    kept = {n for n in range(5) if (tmp_path / f"trials/{n}/checkpoints").is_dir()}
    assert kept == set([2, 3, 0, 4, 1][:keep])
    assert len(report.ended(tmp_path)) == 5


def test_trials_come_in_the_order_of_their_points_and_seeds(tmp_path):
    for n, (lr, seed) in enumerate([(0.2, 1), (0.1, 1), (0.2, 0), (0.1, 0)]):
        (tmp_path / f"trials/{n}").mkdir(parents=True)
        (tmp_path / f"trials/{n}/{ENDED}").write_text(json.dumps(trial(lr, seed, 0.1)))
    assert [(each["point"]["train.lr"], each["seed"]) for each in report.ended(tmp_path)] == [
        (0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1),
    ]  # fmt: skip


def test_best_yaml_has_the_first_seed_of_the_best_point(tmp_path, monkeypatch):
    for name in ("curves", "parallel", "progress"):
        monkeypatch.setattr(report, name, lambda *_: None)
    sweep = job("sweep.seeds=[4, 2]")
    for lr, value in ((0.1, 0.2), (0.2, 0.3)):
        for seed in (4, 2):
            one = Trial.of({"train.lr": lr}, seed, tmp_path)
            one.folder.mkdir(parents=True)
            line = {"event": "valid", "epoch": 1, "ndcg@10": value, "hr@1": 0.1, "mrr": 0.1}
            (one.folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
            one.end("done", "ndcg@10")
    report.write(tmp_path, sweep.sweep, cfg.shared(sweep))
    best = cfg.load([str(tmp_path / "best.yaml")])
    assert (best.train.lr, best.seed) == (0.2, 2)
    assert "of 2 points" in (tmp_path / "best.yaml").read_text().splitlines()[1].replace("best of", "of")


def test_a_trial_without_gpus_sees_none(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    without, with_ = environment(job("sweep.cpus=2.5").sweep), environment(job("sweep.gpus=1", "sweep.cpus=0.5").sweep)
    assert (without["ACCELERATE_USE_CPU"], without["CUDA_VISIBLE_DEVICES"], without["OMP_NUM_THREADS"]) == (
        "true",
        "",
        "2",
    )
    assert ("ACCELERATE_USE_CPU" in with_, with_["CUDA_VISIBLE_DEVICES"], with_["OMP_NUM_THREADS"]) == (
        False,
        "0,1",
        "1",
    )


def test_a_machine_may_be_filled_and_not_more():
    pytest.importorskip("ray", reason="needs Ray Tune: pip install 'distrec[tune]'")
    from tune.cluster import check_machine

    sweep = job("sweep.concurrent=2", "sweep.processes=2", "sweep.cpus=1.5", "sweep.gpus=1").sweep
    check_machine(sweep, 6, 4)
    with pytest.raises(ValueError, match="take 6 cores; this machine has 5"):
        check_machine(sweep, 5, 4)
    with pytest.raises(ValueError, match="take 4 GPUs; this machine has 3"):
        check_machine(sweep, 6, 3)
    with pytest.raises(ValueError, match="wants a Ray cluster"):
        check_machine(job("sweep.nodes=2").sweep, 99, 9)
