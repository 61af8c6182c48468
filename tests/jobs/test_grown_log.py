"""A log that has grown since a run (case 30): what is said, what is recommended, and how training goes on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
import yaml
from accelerate import Accelerator
from commands import distrec

from distrec import config as cfg
from distrec.data import prepared, store
from distrec.data.preparation import growth
from distrec.jobs import report
from distrec.jobs.comparison import variants
from distrec.jobs.parts import training, warm_start
from distrec.jobs.parts.work import Work
from distrec.models.build import build
from distrec.runtime import Ranks

ROWS = [(f"u{u}", f"i{(u * 7 + k * 3) % 40}", 1_600_000_000 + 3600 * k) for u in range(60) for k in range(9)]
NEW = [("u0", "i1", 1_700_000_000), ("u1", "New!", 1_700_000_001), ("new", "i2", 1_700_000_000), ("new", "New!", 1_700_000_009), ("odd", "New!", 1_600_000_000)]  # fmt: skip
WORDS = ["data.source=table", "data.path=log.csv", "data.negatives=0", "data.root=artefacts", "model.name=sasrec", "model.d_model=16", "train.epochs=2", "train.batch_tokens=128", "train.save_steps=1", "score.bootstrap=0"]  # fmt: skip


def write(path, rows):
    path.write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A finished run `a`, whose log has grown since."""
    folder = tmp_path_factory.mktemp("grown")
    write(folder / "log.csv", ROWS)
    distrec("train", *WORDS, "out=a", cwd=folder)
    write(folder / "log.csv", [*ROWS, *NEW])
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def job(out, *words, stop=lambda: False):
    config = cfg.load([*WORDS, f"out={out}", *words])
    data = prepared.load(prepared.prepare(config.data))
    return Work(config, data, Ranks(), stop, torch.device("cpu"), Accelerator(cpu=True), parent=Path("a"))


def trained(out, *words, parent=None):
    """A finished run, made in this process."""
    assert training.train(replace(job(out, *words), parent=parent and Path(parent)))
    return Path(out)


def data_of(run):
    folder = growth.find(Path("artefacts"), store.read_stamp(Path(run))["made_by"]["data"])
    assert folder is not None
    return prepared.load(folder)


@pytest.mark.parametrize("command", [["evaluate"], ["recommend"], ["train", *WORDS]])
def test_case_30_the_message_names_what_changed_and_what_to_do(place, command):
    before = sorted(place.glob("a/**/*"))
    error = distrec(*command, "out=a", cwd=place, code=2).stderr.strip().splitlines()[-1]
    assert "log.csv has changed since the run in a: 5 interactions more, 2 new users, 1 new item;" in error
    assert "histories=data" in error
    assert "from=a" in error
    assert "out=DIR" in error
    assert "remove" not in error
    assert sorted(place.glob("a/**/*")) == before


def test_other_settings_of_the_data_are_named(place):
    error = distrec("train", *WORDS, "data.seed=3", "out=a", cwd=place, code=2).stderr
    assert "data.seed was 0, now 3" in error


def test_a_grown_log_is_recommended_from_by_the_names_of_its_items(place):
    """The same lists as for a file of the histories that plain Python reads from the log."""
    refused = distrec("recommend", "out=a", "histories=data", cwd=place, code=2).stderr
    assert "3 of 545 interactions are with 1 items that the run was not trained on, the first of them 'New!'" in refused
    assert "unknown=drop" in refused
    done = distrec("recommend", "out=a", "histories=data", "unknown=drop", "to=data.jsonl", cwd=place)
    assert "1 of 62 users have no other item and get no list" in done.stderr
    histories = {}
    for user, item, _ in sorted([*ROWS, *NEW], key=lambda row: row[2]):
        if item != "New!":
            histories.setdefault(user, []).append(item)
    lines = [json.dumps({"user": user, "items": items}) for user, items in histories.items()]
    (place / "h.jsonl").write_text("\n".join(lines) + "\n")
    distrec("recommend", "out=a", "histories=h.jsonl", "to=file.jsonl", cwd=place)
    lists = [pl.read_ndjson(place / name).sort("user") for name in ("data.jsonl", "file.jsonl")]
    assert lists[0]["user"].to_list() == sorted(histories)
    assert lists[0]["items"].to_list() == lists[1]["items"].to_list()


def test_training_goes_on_from_the_vectors_that_the_items_had_by_name(here):
    """Ids are a shuffle of the names: one new item moves others.  New items start as in a fresh model."""
    work = job("b", "train.epochs=1", "train.save_steps=1000")
    assert training.train(work)
    then, now = data_of("a"), work.data
    old_ids, new_ids = list(then.items["raw"]), list(now.items["raw"])
    assert [name for name in new_ids if name != "New!"] != old_ids
    best = json.loads((here / "a/checkpoints" / max(p.name for p in (here / "a/checkpoints").iterdir()) / "state.json").read_text())["best_checkpoint"]  # fmt: skip
    before = safetensors.torch.load_file(here / "a/checkpoints" / best / "model.safetensors")
    model = build(work.config.model, now, work.config.seed)
    fresh = model.item.weight.detach().clone()
    parent = warm_start.parent_of(work)
    assert parent is not None
    parent.load(model)
    for i, name in enumerate(new_ids):
        wanted = fresh[i] if name == "New!" else before["item.weight"][old_ids.index(name)]
        assert torch.equal(model.item.weight[i], wanted), name
    rest = dict(model.named_parameters())
    assert all(torch.equal(rest[key], value) for key, value in before.items() if key != "item.weight")
    first = safetensors.torch.load_file(here / "b/checkpoints/step-00000000-0000/model.safetensors")
    assert all(torch.equal(rest[key], value) for key, value in first.items())
    made = store.read_stamp(here / "b")["made_by"]
    assert made["from"] == "a"
    assert made["from.checkpoint"] == store.content(here / "a/checkpoints" / best)
    assert made["from.data"] == [then.stamp]


def test_such_a_run_goes_on_bit_for_bit_after_a_stop(here):
    assert training.train(job("whole"))
    calls = iter(range(10**6))
    assert training.train(job("stopped", stop=lambda: next(calls) == 1)) is None
    (here / "stopped/.lock").unlink()  # which goes with a process
    assert training.train(job("stopped"))
    names = sorted(path.name for path in (here / "whole/checkpoints").iterdir())
    assert names == sorted(path.name for path in (here / "stopped/checkpoints").iterdir())
    for file in [f"checkpoints/{names[-1]}/model.safetensors", f"checkpoints/{names[-1]}/optimizer.safetensors", "ranks.parquet"]:  # fmt: skip
        assert (here / "whole" / file).read_bytes() == (here / "stopped" / file).read_bytes()


def test_warm_and_fresh_runs_are_two_variants_and_a_page_says_how_to_run_it_again(here, capfd):
    folders = trained("warm", parent="a"), trained("fresh")
    warm, fresh = (variants.read(folder, "", ["data.root=artefacts"], {}) for folder in folders)
    assert len(variants.variants([warm, fresh])) == 2
    assert variants.differing([warm, fresh]) == ["from.data"]
    assert [link.state for link in warm.links if link.name == "data of a parent"] == ["verified"]
    report.main(["warm", "out=warm.html"])
    assert "distrec train warm/config.yaml from=a out=NEW_FOLDER" in (here / "warm.html").read_text()
    report.main(["fresh", "out=fresh.html"])
    assert "distrec train fresh/config.yaml out=NEW_FOLDER" in (here / "fresh.html").read_text()


def test_runs_of_other_data_are_not_compared_and_what_differs_is_named(here):
    folders = trained("then", parent="a"), trained("later", "data.k_core=3")
    runs = [variants.read(folder, "", ["data.root=artefacts"], {}) for folder in folders]
    with pytest.raises(
        ValueError,
        match=r"later cannot be compared with .*then: other data: data\.k_core was None, now 3 since .* interactions fewer",
    ):
        variants.check_same(runs)


def test_two_parents_are_refused_and_home_is_home(here, monkeypatch):
    assert (
        "from=a from=b: a run starts from one other run"
        in distrec("train", *WORDS, "from=a", "from=b", cwd=here, code=2).stderr
    )
    monkeypatch.setenv("HOME", str(here))
    assert (
        f"from={here}/nothing is no run folder" in distrec("train", *WORDS, "from=~/nothing", cwd=here, code=2).stderr
    )
    distrec("prepare", *WORDS[:4], "ids=~/ids.txt", cwd=here)
    assert (here / "ids.txt").is_file()


def test_a_file_of_histories_has_words_of_its_own(here):
    (here / "other.csv").write_text("who;what;how\nz;i3;buy\nz;i1;view\n")
    words = ["data.columns.user=who", "data.columns.item=what", "data.separator=;", "data.where=how = buy"]
    distrec("recommend", "out=a", "histories=other.csv", "to=z.jsonl", *words, "data.path=log.csv", cwd=here)
    (here / "same.jsonl").write_text('{"user": "z", "items": ["i3"]}\n')
    distrec("recommend", "out=a", "histories=same.jsonl", "to=same-z.jsonl", cwd=here)
    assert (here / "z.jsonl").read_text() == (here / "same-z.jsonl").read_text()
    for source in (["histories=data"], []):
        refused = distrec("recommend", "out=a", *source, *words, cwd=here, code=2).stderr
        assert "data.columns.user=who says how histories=FILE is read" in refused
    assert "did you mean histories?" in distrec("recommend", "out=a", "history=x", cwd=here, code=2).stderr


@pytest.mark.slow
def test_an_experiment_on_a_log_that_has_grown_is_refused_before_work(tmp_path):
    write(tmp_path / "log.csv", ROWS)
    runs = {"more": {"model": {"dropout": 0.5}}, "less": {"model": {"dropout": 0.1}}}
    judge = [{"that": "more is better", "metric": "ndcg@10", "of": "more", "versus": "less", "above": 0}]
    tree = {"experiment": {"claim": "more is better", "source": "nobody", "runs": runs, "judge": judge, "seeds": [0]}}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(tree))
    distrec("experiment", "e.yaml", *WORDS, cwd=tmp_path)
    write(tmp_path / "log.csv", [*ROWS, *NEW])
    refused = distrec("experiment", "e.yaml", *WORDS, "experiment.seeds=[0,1]", cwd=tmp_path, code=2).stderr
    assert "log.csv has changed since the run in" in refused
    assert len(list(tmp_path.glob("experiments/runs/*/stamp.json"))) == 2


def test_a_run_that_has_begun_needs_its_parent_no_more(here, capfd):
    assert training.train(job("gone", stop=lambda: True)) is None
    (here / "gone/.lock").unlink()
    (here / "a").rename(here / "elsewhere")
    try:
        with pytest.raises(ValueError, match=r"elsewhere|a/config\.yaml"):
            training.train(job("never begun"))
        assert training.train(job("gone"))
        assert training.train(job("gone"))  # a finished one
    finally:
        (here / "elsewhere").rename(here / "a")
    assert "from=a is not there any more: gone goes on from its own checkpoint" in capfd.readouterr().err
    if (here / "whole").exists():
        assert (here / "whole/ranks.parquet").read_bytes() == (here / "gone/ranks.parquet").read_bytes()
    made = store.read_stamp(here / "gone")["made_by"]
    assert made["from.data"] == [data_of("a").stamp]


def test_a_run_that_has_begun_is_no_run_of_another_parent(here):
    if not (here / "gone").exists():
        assert training.train(job("gone"))
    trained("other", "seed=1")
    with pytest.raises(ValueError, match=r"gone holds another run \(it started from the weights of another from=RUN\)"):
        training.train(replace(job("gone"), parent=Path("other")))


def test_what_an_ancestor_was_trained_on_is_held_against_its_grandchild(tmp_path, monkeypatch):
    """a is trained on the first seven rows of a user; b goes on from it without rows three to six; c holds out rows three
    and four, which b never had."""
    monkeypatch.chdir(tmp_path)
    rows = {user: [row for row in ROWS if row[0] == user] for user, _, _ in ROWS}
    later = [(user, f"i{k}", 1_700_000_000 + k) for user in rows for k in (1, 2)]
    write(tmp_path / "log.csv", ROWS)
    trained("a")
    write(tmp_path / "log.csv", [*(row for user in rows for row in rows[user][:3]), *later])
    trained("b", parent="a")
    made = [store.read_stamp(tmp_path / run)["made_by"] for run in "ab"]
    assert made[1]["from.data"] == [made[0]["data"]]
    write(tmp_path / "log.csv", [row for user in rows for row in rows[user][:5]])
    with pytest.raises(ValueError, match="from=b was trained on 120 interactions that these data hold out"):
        trained("c", parent="b")
    assert not (tmp_path / "c").exists()
    write(tmp_path / "log.csv", [*(row for user in rows for row in rows[user][:3]), *later, *NEW])
    trained("d", parent="b")
    assert store.read_stamp(tmp_path / "d")["made_by"]["from.data"] == [each["data"] for each in made]


def test_other_data_are_refused_with_the_words_that_name_those_of_the_run(here):
    words = [word for word in WORDS if not word.startswith("data.") or word.startswith("data.root")]
    refused = distrec("train", *words, "from=a", "out=other data", cwd=here, code=2).stderr
    assert "from=a: none of its 40 items is among these 1,000, which are other data (data.source=synthetic)" in refused
    assert "distrec train a/config.yaml from=a" in refused
    assert not (here / "other data").exists()


@pytest.mark.parametrize("form", ["ms", "day", "other zone", "none"])
def test_a_time_that_is_written_otherwise_hides_nothing(here, form):
    """The same rows, split by another rule, which holds out what a was trained on; and as a was, which does not."""
    written = {
        "ms": lambda t: f"{t}.250",
        "day": lambda t: str(t // 86_400 * 86_400),
        "other zone": lambda t: str(t + 7200),
        "none": lambda t: "",
    }[form]
    (here / f"{form}.csv").write_text("user,item,time\n" + "".join(f"{u},{i},{written(t)}\n" for u, i, t in ROWS))
    order = ["data.columns.time=null"] if form == "none" else []
    words = [f"data.path={form}.csv", *order]
    if form != "day":  # where the order within a day is lost, other rows are held out than then
        row = warm_start.parent_of(job("as then", *words))
        assert row is not None
    if form in ("ms", "other zone"):
        with pytest.raises(ValueError, match=r"from=a was trained on \d+ interactions that these data hold out"):
            warm_start.parent_of(
                job("refused", *words, "data.split=global_time", "data.valid_share=0.4", "data.test_share=0.3")
            )
    short = [row for row in ROWS if int(row[2]) < 1_600_000_000 + 3600 * 6]
    (here / f"{form}.csv").write_text("user,item,time\n" + "".join(f"{u},{i},{written(t)}\n" for u, i, t in short))
    with pytest.raises(ValueError, match=r"from=a was trained on \d+ interactions that these data hold out"):
        warm_start.parent_of(job("refused", *words))


def test_users_who_were_too_short_then_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "log.csv", [*ROWS, ("short", "i1", 1_600_000_000), ("short", "i2", 1_600_000_001)])
    trained("a")
    write(tmp_path / "log.csv", [*ROWS, *(("short", f"i{k}", 1_600_000_000 + k) for k in (1, 2, 3))])
    with pytest.raises(
        ValueError,
        match=r"1 interactions .* item 'i2' of user 'short' \(1 of users who had too few then.*k_core=3 or more",
    ):
        warm_start.parent_of(job("refused"))


def test_a_parent_that_does_not_say_what_its_own_parent_was_trained_on_is_refused(here):
    """As runs of a former version do not."""
    run = trained("former", "seed=2", parent="a")
    for folder in (run / "checkpoints").glob("step-*"):
        stamp = store.read_stamp(folder)
        del stamp["made_by"]["from.data"]
        store.stamp_files(folder, stamp["made_by"], list(stamp["files"]))
    with pytest.raises(
        ValueError, match=r"from=former started from another run, and a former version of distrec did not"
    ):
        warm_start.parent_of(replace(job("refused"), parent=run))


def test_another_run_in_the_folder_is_told(here):
    if not (here / "b2").exists():
        assert training.train(job("b2", "train.epochs=1"))
    with pytest.raises(ValueError, match=r"b2 holds another run \(it started from the weights of another from=RUN\)"):
        training.train(replace(job("b2", "train.epochs=1"), parent=None))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.n_heads=1"], r"from=a: model\.n_heads was 2, now 1"),
        (["out=a"], r"from=a is out itself, whose weights stay as they are"),
        (
            ["data.root=elsewhere"],
            r"from=a: the data of that run, or of one that it started from, are not in data\.root=elsewhere",
        ),
        (
            ["data.split=global_time", "data.valid_share=0.4", "data.test_share=0.3"],
            r"from=a was trained on \d+ interactions that these data hold out",
        ),
    ],
)
def test_a_run_that_cannot_go_on_is_refused(here, words, message):
    with pytest.raises(ValueError, match=message):
        training.train(job("refused", *words))
    assert not (here / "refused").exists()


@pytest.mark.parametrize("name", ["markov", "frellm"])
def test_models_without_weights_of_their_own_items_cannot_go_on(here, name):
    work = job("refused")
    config = cfg.load([word for word in WORDS if not word.startswith("model.d")] + [f"model.name={name}"])
    with pytest.raises(ValueError, match=rf"from=a: model\.name={name} .* train it without from="):
        training.train(replace(work, config=config))


def test_what_is_held_out_is_found_by_user_item_and_time(tmp_path):
    """Against plain Python, on logs with repeats, of which the second loses or gains rows."""
    rng = np.random.default_rng(0)
    outcomes = set()
    for n in range(30):
        rows = [(f"u{rng.integers(6)}", f"i{rng.integers(5)}", int(rng.integers(9))) for _ in range(50)]
        others = [row for row in rows if rng.random() < 0.9] + [(f"u{rng.integers(8)}", "x", int(rng.integers(9, 12))) for _ in range(rng.integers(9))]  # fmt: skip
        both = []
        for i, log in enumerate((rows, others)):
            write(tmp_path / f"{n}-{i}.csv", log)
            words = [f"data.path={tmp_path}/{n}-{i}.csv", "data.source=table", f"data.root={tmp_path}", "data.negatives=0", "data.duplicates=keep"]  # fmt: skip
            both.append(prepared.load(prepared.prepare(cfg.load(words).data)))
        then, now = both
        counts = []
        for data, held_out in ((then, False), (now, False), (now, True)):
            mask, user = data.is_train() != held_out, np.repeat(np.arange(data.n_users), np.diff(data.start))
            keys = [(data.users["raw"][int(u)], data.items["raw"][int(i)], int(t)) for u, i, t in zip(user[mask], data.item[mask], data.time[mask], strict=True)]  # fmt: skip
            counts.append({key: keys.count(key) for key in keys})
        known = [key for key in counts[2] if counts[0].get(key, 0) > counts[1].get(key, 0)]
        outcomes.add(bool(known))
        if known:
            with pytest.raises(ValueError, match=f"was trained on {len(known)} interactions"):
                growth.check_held_out(then, now, tmp_path)
        else:
            growth.check_held_out(then, now, tmp_path)
    assert outcomes == {True, False}
