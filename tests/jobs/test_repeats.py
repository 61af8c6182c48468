"""Case 15: targets that users have had before, and runs that were measured before there was a rule for them."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from commands import distrec

from distrec.data import store
from distrec.engine.evaluation import metrics, outcome, scoring
from distrec.jobs import compare, evaluate, report

WORDS = ("data.source=table", "data.root=artefacts", "data.negatives=0", "score.bootstrap=0")


def groceries():
    """300 products, 80 % of what is bought was bought before."""
    for u in range(200):
        r, had = random.Random(u), []
        for k in range(60):
            i = r.choice(had) if had and r.random() < 0.8 else r.randrange(300)
            had.append(i)
            yield f"u{u},i{i},{1_600_000_000 + 86_400 * k + u}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repeats")
    ten = [f"u{u},i{(u + k * 3) % 10},{1_600_000_000 + 60 * k}" for u in range(40) for k in range(40)]
    for name, rows in (("repeat", groceries()), ("ten", ten)):
        (folder / f"{name}.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
    for out, data, model in (("knn", "repeat", "item_knn"), ("ten", "ten", "popularity"), ("popular", "repeat", "popularity")):  # fmt: skip
        done = distrec("train", *WORDS, f"data.path={data}.csv", f"model.name={model}", f"out={out}", cwd=folder)
        (folder / f"{out}.txt").write_text(done.stdout)
    return folder


def figures(place, name="knn", file="test"):
    return json.loads((place / name / f"{file}.json").read_text())


def test_a_repeated_target_is_no_easier_with_the_mask_than_without(place):
    kept = distrec("evaluate", "out=knn", "score.mask_history=false", cwd=place).stdout
    ours, plain = figures(place), figures(place, file="evaluate-test")
    assert ours["full"]["hr@1"] == plain["full"]["hr@1"] == pytest.approx(0.015)
    assert ours["full"]["ndcg@10"] == pytest.approx(plain["full"]["ndcg@10"], abs=1e-3)
    assert ours["repeat_targets"] == plain["repeat_targets"]
    assert ours["new_targets"]["mrr"] > plain["new_targets"]["mrr"]
    assert ours["repeats"] == ours["repeat_targets"]["users"] == 157
    assert ours["new_targets"]["users"] == 43
    whole = sum(ours[name]["users"] * ours[name]["mrr"] for name in ("new_targets", "repeat_targets"))
    assert ours["full"]["mrr"] == pytest.approx(whole / 200)
    for told in ((place / "knn.txt").read_text(), kept):
        assert "157 of 200 targets (78.5%) are items that the user has had before" in told
        assert "new_targets" in told
        assert "repeat_targets" in told
    assert (ours["protocol"]["history"], plain["protocol"]["history"]) == (scoring.HISTORY[True], "kept")


def test_who_has_had_everything_makes_no_model_perfect(place):
    found = figures(place, "ten")
    assert found["repeats"] == found["users"] == 40
    assert found["full"]["hr@1"] == pytest.approx(0.1)  # ten items, as often had
    assert "new_targets" not in found
    table = pl.read_parquet(place / "ten/ranks.parquet")
    assert table["repeat"].all()
    assert (table["rank"] == 1 + table["better"] + table["ties"] / 2).all()


def test_the_share_is_told_where_figures_stand_beside_each_other(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    compare.main(["knn", "popular", "out=both"])
    assert "157 of 200 targets (78.5%)" in capsys.readouterr().out
    found = json.loads(Path("both/compare.json").read_text())
    for name in ("full", "new_targets", "repeat_targets"):
        for model, run in (("item_knn", "knn"), ("popularity", "popular")):
            wanted = figures(place, run)[name]
            assert found[name]["variants"][model]["ndcg@10"]["mean"] == pytest.approx(wanted["ndcg@10"])
            assert found[name]["users"] == wanted.get("users", 200)
    page = Path("both/page.md").read_text()
    for part in ("All items, new targets", "All items, repeated targets", "157 of 200 targets"):
        assert part in page
    report.main(["knn", "out=report.html"])
    assert "157 of 200 targets" in Path("report.html").read_text(encoding="utf-8")
    assert "Repeated targets" in Path("report.html").read_text(encoding="utf-8")


def aged(run, how):
    """The run as an older distrec left it."""
    found, table = json.loads((run / "test.json").read_text()), pl.read_parquet(run / "ranks.parquet")
    for key in ("repeats", "new_targets", "repeat_targets"):
        found.pop(key)
    found["protocol"] |= how
    found["full"]["mrr"] = 0.5
    made = store.read_stamp(run)
    (run / "test.json").write_text(json.dumps(found))
    table.drop("better", "ties", "repeat").write_parquet(run / "ranks.parquet")
    store.stamp_files(run, made["made_by"], list(made["files"]))


FORMER = {"history": "masked (everything the user had, never the target)", "ties": "expected rank"}


@pytest.mark.parametrize("how", [FORMER, {"ties": "expected rank"}, {"history": FORMER["history"]}], ids=["both", "ties", "history"])  # fmt: skip
def test_a_run_of_a_former_protocol_is_named(place, tmp_path, monkeypatch, how):
    for run in ("knn", "popular"):
        shutil.copytree(place / run, tmp_path / run)
    monkeypatch.chdir(tmp_path)
    aged(Path("knn"), how)
    root = f"data.root={place / 'artefacts'}"
    said = "knn was measured by a former protocol .*`distrec evaluate out=knn` measures it again"
    for work in (
        lambda: compare.main(["popular", "knn", "out=refused", root]),
        lambda: compare.main(["knn", "out=refused", root]),
        lambda: report.main(["knn", "out=refused.html", root]),
        lambda: outcome.ranks(Path("knn")),
    ):
        with pytest.raises(ValueError, match=said):
            work()


def test_a_run_of_a_former_protocol_can_be_measured_again(place, monkeypatch):
    monkeypatch.chdir(place)
    before, ranks = figures(place), pl.read_parquet("knn/ranks.parquet")
    aged(Path("knn"), FORMER)
    distrec("evaluate", "out=knn", "score.mask_history=false", cwd=place)
    assert outcome.is_former(figures(place))  # another question was asked
    distrec("evaluate", "out=knn", "split=valid", cwd=place)
    assert outcome.is_former(figures(place))
    told = distrec("evaluate", "out=knn", cwd=place)
    assert "former-test.json" in told.stderr
    assert figures(place) == before
    assert figures(place, file="former-test")["full"]["mrr"] == 0.5
    assert pl.read_parquet("knn/ranks.parquet").equals(ranks)
    store.verify_stamped(Path("knn"))
    compare.main(["knn", "popular", "out=again"])


@pytest.mark.parametrize("last", ["nothing", "ranks", "figures"])
def test_a_measuring_again_that_is_killed_is_done_again(place, tmp_path, monkeypatch, last):
    """After the old stamp was put aside; after the new ranks were written; after the figures too."""
    shutil.copytree(place / "knn", tmp_path / "knn")
    wanted, ranks = figures(tmp_path), pl.read_parquet(tmp_path / "knn/ranks.parquet")
    made = store.read_stamp(tmp_path / "knn")["made_by"]
    monkeypatch.chdir(tmp_path)
    aged(Path("knn"), FORMER)
    write = outcome.write

    def killed(folder, report, table, name="test"):
        if name == "test":
            if last == "figures":
                write(folder, report, table, name)
            elif last == "ranks":
                table.write_parquet(folder / "ranks.parquet")
            raise KeyboardInterrupt
        write(folder, report, table, name)

    words = ["out=knn", f"data.path={place}/repeat.csv", f"data.root={place}/artefacts"]
    with monkeypatch.context() as patch:
        patch.setattr(outcome, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate.main(words)
    assert not Path("knn/stamp.json").exists()
    evaluate.main(words)
    assert figures(tmp_path) == wanted
    assert figures(tmp_path, file="former-test")["full"]["mrr"] == 0.5
    assert pl.read_parquet("knn/ranks.parquet").equals(ranks)
    store.verify_stamped(Path("knn"))
    assert store.read_stamp(Path("knn"))["made_by"] == made
    assert not list(Path("knn").glob("former-stamp*"))


def test_a_run_that_is_not_finished_does_not_go_on_under_another_protocol(place, monkeypatch):
    monkeypatch.chdir(place)
    stamp = store.read_stamp(Path("popular"))
    assert stamp["made_by"]["score.protocol"] == scoring.PROTOCOL
    former = {key: value for key, value in stamp["made_by"].items() if key != "score.protocol"}
    store.stamp_files(Path("popular"), former, list(stamp["files"]))
    words = (*WORDS, "data.path=repeat.csv", "model.name=popularity", "out=popular")
    assert "score.protocol" in distrec("train", *words, cwd=place, code=2).stderr
    distrec("evaluate", "out=popular", cwd=place)
    store.stamp_files(Path("popular"), stamp["made_by"], list(stamp["files"]))


def test_sentences_about_figures():
    whole = {"users": 400, "repeats": 0, "protocol": {"history": scoring.HISTORY[True]}, "full": {}}
    assert outcome.remarks(whole) == []
    (short,) = outcome.remarks({**whole, "short_lists": 3})
    assert "3 of 400 lists are shorter than 20" in short
    assert "model.beams" in short
    (lacking,) = outcome.remarks({**whole, "sampled_1_20": {"users": 390}})
    assert lacking == "sampled_1_20 is of the 390 users who have negatives, of 400."
    assert outcome.remarks({**whole, "sampled_1_20": {"users": 400}}) == []
    (kept,) = outcome.remarks({**whole, "repeats": 40, "protocol": {"history": "kept"}})
    assert "40 of 400 targets (10.0%)" in kept
    assert "as all are" in kept


def test_users_are_parted_only_where_targets_repeat():
    assert outcome.by_repeat(np.zeros(4, bool)) == {}
    assert list(outcome.by_repeat(np.ones(4, bool))) == ["repeat_targets"]
    parts = outcome.by_repeat(np.array([True, False, False]))
    assert {name: users.tolist() for name, users in parts.items()} == {"new_targets": [False, True, True], "repeat_targets": [True, False, False]}  # fmt: skip
    assert metrics.NAMES[-1] == "mrr"
