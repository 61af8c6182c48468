"""Codes to recommendations: train a generative model, evaluate it, recommend to anyone."""

import json
import shutil

import polars as pl
import pytest
import torch
from commands import distrec

from distrec import config as cfg
from distrec.data import histories, prepared
from distrec.jobs import recommend

SMALL = ["data.synthetic.users=120", "data.synthetic.items=150", "data.negatives=20", "embed.encoder=builtin"]
CODES = ["codes.name=kmeans", "codes.size=16", "codes.gate=false"]
TINY = ["model.d_model=16", "model.d_ff=32", "model.d_kv=8", "model.n_heads=2", "model.n_layers=1", "model.max_len=8"]
SHORT = ["train.epochs=2", "train.lr=3e-3", "score.bootstrap=0"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a finished run of TONE and one of an item-kNN."""
    folder = tmp_path_factory.mktemp("generate")
    distrec("train", *SMALL, *CODES, *TINY, *SHORT, "model.name=tone", "out=tone", cwd=folder)
    distrec("train", *SMALL, *SHORT, "model.name=item_knn", "out=knn", cwd=folder)
    return folder


@pytest.fixture
def data(place, monkeypatch):
    monkeypatch.chdir(place)
    return prepared.load(prepared.prepare(cfg.load(SMALL).data))


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_one_command_makes_whatever_is_missing_and_reports_every_way_of_decoding(place):
    report = json.loads((place / "tone/test.json").read_text())
    assert report["protocol"]["history"].startswith("masked where the target is new")
    assert report["protocol"]["ranks"] == "the first 30 generated"
    assert 0 < report["sampled_1_20"]["hr@10"] <= 1
    assert report["full"] == report["constrained"]
    assert 0 <= report["free_invalid"] <= 1
    assert report["free"]["hr@10"] >= report["free_ids"]["hr@10"]
    assert {path.name.split("-")[0] for path in (place / "artefacts").iterdir() if path.is_dir()} >= {
        "prepared",
        "vectors",
        "codes",
    }
    assert report["learnt"]["sigma"] == pytest.approx(3, abs=0.5)
    assert {"crfa.real.layers.0.attention.rpml.rank@0.01"} <= set(report["learnt"])  # with its tolerance
    table = pl.read_parquet(place / "tone/ranks.parquet")
    assert {"rank", "rank_constrained", "rank_free", "rank_free_ids", "free_invalid"} <= set(table.columns)


def test_evaluate_gives_the_same_figures_and_can_keep_the_history(place):
    distrec("evaluate", "out=tone", cwd=place)
    again = json.loads((place / "tone/evaluate-test.json").read_text())
    assert again["full"] == json.loads((place / "tone/test.json").read_text())["full"]
    assert again["protocol"]["history"].startswith("masked where the target is new")
    assert "short_lists" in again
    distrec("evaluate", "out=tone", "score.mask_history=false", cwd=place)
    kept = json.loads((place / "tone/evaluate-test.json").read_text())
    assert kept["protocol"]["history"] == "kept"
    assert kept["full"]["hr@20"] <= again["full"]["hr@20"]


def test_a_killed_run_knows_its_codes(place):
    refused = distrec("train", *SMALL, *CODES, *TINY, *SHORT, "model.name=tone", "out=tone", "codes.size=32", cwd=place, code=2)  # fmt: skip
    assert "tone holds another run (codes was" in refused.stderr


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("run", ["tone", "knn"])
def test_anyone_gets_recommendations(place, data, tmp_path, run, suffix):
    raw = list(data.items["raw"])
    rows = [{"user": f"new{n}", "items": raw[n : n + 3 + n]} for n in range(15)]
    source = lines(tmp_path / "h.jsonl", rows)
    if suffix == "parquet":
        pl.DataFrame(rows).write_parquet(source := tmp_path / "h.parquet")
    to = tmp_path / f"r.{suffix}"
    distrec("recommend", f"out={run}", f"histories={source}", "k=5", f"to={to}", "score.batch_users=4", cwd=place)
    found = pl.read_ndjson(to) if suffix == "jsonl" else pl.read_parquet(to)
    assert found["user"].to_list() == [row["user"] for row in rows]
    texts = dict(zip(raw, data.items["text"], strict=True))
    for row, out in zip(rows, found.iter_rows(named=True), strict=True):
        assert len(set(out["items"])) == 5
        assert out["texts"] == [texts[item] for item in out["items"]]
        assert out["scores"] == sorted(out["scores"], reverse=True)
        assert run == "tone" or not set(out["items"]) & set(row["items"])


def listed(place, tmp_path, *words):
    to = tmp_path / "r.jsonl"
    recommend.main([f"out={place}/tone", f"to={to}", *words])
    return pl.read_ndjson(to)


def test_only_allowed_items_come_out(place, data, tmp_path):
    raw = list(data.items["raw"])
    source = lines(tmp_path / "h.jsonl", [{"user": "a", "items": raw[:4]}, {"user": "b", "items": raw[9:30]}])
    (tmp_path / "only.txt").write_text("\n".join(raw[40:60]))
    found = listed(place, tmp_path, f"histories={source}", f"among={tmp_path}/only.txt", "k=30")
    assert all(set(items) == set(raw[40:60]) for items in found["items"])
    dropped = listed(place, tmp_path, f"histories={source}", "k=30", "score.mask_history=true")
    assert not set(dropped["items"][1]) & set(raw[9:30])


def test_a_long_history_is_read_from_its_end(data, tmp_path):
    raw = list(data.items["raw"])
    source = lines(tmp_path / "h.jsonl", [{"user": "a", "items": raw[:40]}, {"user": 7, "items": raw[5:7]}])
    asked = histories.read(source, data)
    batch = asked.batch(slice(0, 2), 8)
    assert batch.items[0].tolist() == list(range(32, 40))
    assert batch.items[1][batch.is_item[1]].tolist() == [5, 6]
    assert torch.equal(batch.is_item.sum(1), torch.tensor([8, 2]))


@pytest.mark.parametrize(
    ("rows", "words", "message"),
    [
        (
            [{"user": "a", "items": ["x"]}],
            [],
            "1 of 1 items are not in the catalogue, the first of them 'x' of user 'a'",
        ),
        ([{"user": "a", "items": ["x"]}], ["unknown=drop"], "1 users have an empty history, the first of them 'a'"),
        (
            [{"user": "a", "items": ["i"]}, {"user": "b", "items": []}],
            ["unknown=drop"],
            "2 users have an empty history",
        ),
        ([{"user": "b", "items": ["i"]}, {"user": "a"}], [], "line 2: not like .*: no 'items'"),
        ([{"user": "a", "items": "x"}], [], "items is a list of item ids"),
        ([], [], "holds no history|empty"),
        ([{"user": "a", "items": ["x", None]}], [], "line 1: items None is no id"),
        (
            [{"user": "a", "items": ["x"]}, {"user": None, "items": ["x"]}],
            [],
            "line 2: user None is no id",
        ),
        ([{"user": "a", "items": [["x"]]}], [], "line 1: .* an id is a text or a whole number"),
        ([{"user": {"x": 1}, "items": ["x"]}], [], "line 1: .* an id is a text or a whole number, got {'x': 1}"),
        ([{"user": "a", "items": [1.5]}, {"user": "b", "items": ["1"]}], [], "line 1: .* got 1.5"),
        ([{"user": True, "items": ["1"]}], [], "line 1: .* got True"),
        ([{"user": "\ud800", "items": ["1"]}], [], "line 1: .* surrogates"),
        ([{"user": "a", "items": ["x"]}], ["to=nowhere/r.jsonl"], "no file can be written there"),
        ([{"user": "a", "items": ["x"]}], ["among="], "among= has no value"),
        ([{"user": "a", "items": ["x"]}], ["k=99999999999999999999"], "a whole number from 1 to"),
        (None, [], "no such file"),
        ([{"user": "a", "items": ["x"]}], ["k=0"], "a whole number from 1 to"),
        ([{"user": "a", "items": ["x"]}], ["train.lr=1"], "not train.lr"),
        ([{"user": "a", "items": ["x"]}], ["to=r.csv"], "ends in .jsonl or .parquet"),
        ([{"user": "a", "items": ["x"]}], ["among=none.txt"], "no such file|not in the catalogue"),
    ],
)
def test_wrong_requests_are_one_clear_line(place, data, tmp_path, rows, words, message):
    source = tmp_path / "h.jsonl"
    if rows is not None:
        lines(source, rows)
    with pytest.raises(ValueError, match=message) as error:
        recommend.main([f"out={place}/tone", f"histories={source}", *words])
    assert "\n" not in str(error.value)


def test_more_than_the_beams_widens_the_search(place, data, tmp_path):
    raw = list(data.items["raw"])
    source = lines(tmp_path / "h.jsonl", [{"user": "a", "items": raw[:4]}, {"user": "b", "items": raw[:140]}])
    found = listed(place, tmp_path, f"histories={source}", "k=40", "score.mask_history=true")
    assert [len(items) for items in found["items"]] == [40, len(raw) - 140]
    (tmp_path / "only.txt").write_text(raw[0])
    found = listed(place, tmp_path, f"histories={source}", f"among={tmp_path}/only.txt", "score.mask_history=true")
    assert [items.to_list() for items in found["items"]] == [[], []]


def test_nothing_is_made_for_a_run_without_checkpoints(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text((place / "tone/config.yaml").read_text())
    (tmp_path / "some.jsonl").write_text('{"user": "u", "items": ["1"]}\n')
    with pytest.raises(ValueError, match="holds no evaluated checkpoint"):
        recommend.main([f"out={tmp_path}/run", f"histories={tmp_path}/some.jsonl", "data.root=fresh"])
    assert not (tmp_path / "fresh").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.samples=sequences"], "train.samples=prefixes"),
        (["model.taps=6"], "taps are odd"),
        (["model.sigma=9"], "between 0.3 and taps"),
        (["model.crfa=false", "model.crfa_tokens=flat"], "model.crfa_tokens does nothing with model.crfa=false"),
        (["model.codes=nowhere"], "model.codes=nowhere is no folder of codes"),
        (["model.agf=maybe"], "model.agf"),
    ],
)
def test_settings_that_cannot_work(place, words, message):
    refused = distrec("train", *SMALL, *CODES, *TINY, "model.name=tone", "out=other", *words, cwd=place, code=2)
    assert message in refused.stderr.strip().splitlines()[-1]


def test_codes_of_another_catalogue_are_refused(place, tmp_path):
    codes = next((place / "artefacts").glob("codes-*"))
    words = [
        *SMALL,
        "data.synthetic.items=140",
        *TINY,
        "model.name=tone",
        f"model.codes={codes}",
        f"data.root={tmp_path}",
    ]
    refused = distrec("train", *words, cwd=tmp_path, code=2)
    assert "is about other items than" in refused.stderr


def test_a_run_is_not_read_with_other_codes(place, tmp_path, monkeypatch):
    """Codes of the same shape fit the weights; only their hash tells."""
    monkeypatch.chdir(place)
    made = distrec("quantize", *SMALL, *CODES, "seed=5", cwd=place).stdout.splitlines()[-1]
    text = (place / "tone/config.yaml").read_text().replace("codes: null", f"codes: {place / made}")
    other = tmp_path / "run"
    other.mkdir()
    (other / "config.yaml").write_text(text)
    (other / "checkpoints").symlink_to(place / "tone/checkpoints")
    refused = distrec("evaluate", f"out={other}", cwd=place, code=2)
    assert "does not hold the codes of this run: give model.codes=FOLDER" in refused.stderr


def test_broken_codes_of_another_run_are_no_hindrance(place):
    broken = place / "artefacts/codes-0"
    broken.mkdir()
    (broken / "stamp.json").write_text("{}")
    distrec("evaluate", "out=tone", "split=valid", "score.bootstrap=0", cwd=place)
    shutil.rmtree(broken)


def test_known_users_have_their_numbers_and_strangers_none(data, tmp_path, capfd):
    users, items = data.users[:3]["raw"], data.items[:2]["raw"]
    rows = [{"user": user, "items": items} for user in (users[2], "stranger", users[0], users[2])]
    asked = histories.read(lines(tmp_path / "h.jsonl", rows), data)
    assert asked.batch(slice(0, 4)).user.tolist() == [2, -1, 0, 2]
    assert f"2 rows share their user with another, the first {users[2]!r}: a list each" in capfd.readouterr().err


def test_without_a_file_everybody_gets_a_list(place, data):
    distrec("recommend", "out=tone", "k=3", "score.mask_history=true", cwd=place)
    found = pl.read_ndjson(place / "tone/recommendations.jsonl")
    assert found["user"].to_list() == list(data.users["raw"])
    for user, items in enumerate(found["items"]):
        assert len(items) == 3
        owned = data.item[data.start[user] : data.start[user + 1]]
        assert not set(items) & {data.items[int(i)]["raw"] for i in owned}


@pytest.mark.parametrize("text", ['{"user":"x","items":["1"],"items":["2"]}', "[1]", "{", '{"user":"x","items":"1"}'])
def test_a_broken_line_is_named(data, tmp_path, text):
    source = tmp_path / "h.jsonl"
    source.write_text('{"user": 1, "items": []}\n\n' + text + "\n")
    with pytest.raises(ValueError, match=r"h.jsonl, line 3: not like"):
        histories.read(source, data)


def test_a_run_whose_config_was_edited_is_not_read(place, tmp_path):
    edited = tmp_path / "edited"
    shutil.copytree(place / "tone", edited)
    text = (edited / "config.yaml").read_text()
    assert "rpml_mode: post_l1" in text
    (edited / "config.yaml").write_text(text.replace("rpml_mode: post_l1", "rpml_mode: post"))
    refused = distrec("evaluate", f"out={edited}", cwd=place, code=2)
    assert "config.yaml is not what was written" in refused.stderr
    (edited / "stamp.json").unlink()
    refused = distrec("evaluate", f"out={edited}", cwd=place, code=2)
    assert "model.rpml_mode was 'post_l1', now 'post'" in refused.stderr


def test_a_wrong_place_is_refused_before_anything_is_prepared(place, tmp_path):
    refused = distrec("evaluate", "out=tone", f"data.root={tmp_path}/none", cwd=place, code=2)
    assert "does not hold the codes of this run" in refused.stderr
    assert not (tmp_path / "none").exists()


def test_another_setting_is_refused_before_anything_is_made(place):
    before = {path.name for path in (place / "artefacts").iterdir()}
    words = [*SMALL, *CODES, *TINY, *SHORT, "model.name=tone", "out=tone"]
    refused = distrec("train", *words, "codes.size=8", "model.sigma=2", cwd=place, code=2)
    assert "tone holds another run (model.sigma was 3.0, now 2.0)" in refused.stderr
    assert {path.name for path in (place / "artefacts").iterdir()} == before


def test_a_finished_run_without_its_best_checkpoint_says_so(place, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(place / "tone", broken)
    shutil.rmtree(broken / "checkpoints")
    words = [*SMALL, *CODES, *TINY, *SHORT, "model.name=tone", f"out={broken}"]
    assert "no evaluated checkpoint" in distrec("train", *words, cwd=place, code=2).stderr


def test_what_a_user_is_offered_depends_on_nobody_s_history_but_theirs(place, data, tmp_path):
    raw = list(data.items["raw"])
    short, long = {"user": "a", "items": raw[:3]}, {"user": "b", "items": raw[:100]}
    words = ["k=5", "score.mask_history=true"]
    both = listed(place, tmp_path, f"histories={lines(tmp_path / 'both.jsonl', [short, long])}", *words)
    for row, one in enumerate((short, long)):
        alone = listed(place, tmp_path, f"histories={lines(tmp_path / 'one.jsonl', [one])}", *words)
        assert both["items"][row].to_list() == alone["items"][0].to_list()
        assert len(both["items"][row]) == 5
