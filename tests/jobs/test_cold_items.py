"""Items of the catalogue that nobody had yet, kept for models that know items by their texts (case 25)."""

import json

import pytest
from commands import distrec

WORDS = ["data.source=table", "data.path=log.csv", "data.items=items.csv", "data.negatives=20", "data.root=artefacts", "data.cold_items=keep", "score.bootstrap=0", "train.epochs=1", "embed.encoder=builtin", "embed.vocabulary=300", "embed.dimensions=32"]  # fmt: skip
TIGER = ["model.name=tiger", "model.d_model=16", "model.d_ff=32", "model.n_heads=2", "model.d_kv=8", "model.n_layers=1", "codes.levels=2", "codes.size=16", "codes.gate=false"]  # fmt: skip
FRELLM = ["model.name=frellm", "model.max_len=8", "model.hidden=32", "model.sasrec_train.epochs=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cold")
    rows = [f"u{u},i{(u * 7 + k * 3) % 80},{1_600_000_000 + 3600 * k}" for u in range(60) for k in range(9)]
    (folder / "log.csv").write_text("user,item,time\n" + "\n".join(rows) + "\n")
    words = ["red", "blue", "tall", "small", "round"]
    items = [f"i{i},{words[i % 5]} {words[i // 5 % 5]} thing {i}" for i in range(200)]
    (folder / "items.csv").write_text("item,title\n" + "\n".join(items) + "\n")
    (folder / "some.txt").write_text("i150\ni151\ni199\n")
    return folder


@pytest.mark.parametrize("model", [TIGER, FRELLM], ids=lambda words: words[0])
def test_case_25_items_without_interactions_can_be_recommended(place, model):
    distrec("train", *WORDS, *model, "out=run", cwd=place)
    distrec("recommend", "out=run", "k=3", "among=some.txt", cwd=place)
    lists = [json.loads(line)["items"] for line in (place / "run/recommendations.jsonl").read_text().splitlines()]
    assert len(lists) == 60
    assert {tuple(sorted(each)) for each in lists} == {("i150", "i151", "i199")}
    (place / "run").rename(place / model[0])
    assert "no leak found" in distrec("audit", *WORDS, cwd=place).stdout


@pytest.mark.parametrize("name", ["sasrec", "popularity", "item_knn", "markov"])
def test_models_that_know_items_by_interactions_alone_refuse_them(place, name):
    refused = distrec("train", *WORDS[:8], f"model.name={name}", "out=refused", cwd=place, code=2)
    assert refused.stderr.startswith(f"error: model.name={name} knows items by their interactions alone")
    assert "data.cold_items=drop" in refused.stderr
    assert not (place / "refused").exists()


def test_without_the_key_they_are_no_items(place):
    done = distrec("prepare", *WORDS[:5], "data.cold_items=drop", cwd=place)
    assert "removed: item rows that join with nothing 120" in " ".join(done.stdout.split())
