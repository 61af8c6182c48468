"""A trial trains what the space says, best.yaml what the trial trained, and all are measured alike."""

import json
import re

import pytest
import yaml

from distrec import config as cfg
from distrec import knobs
from distrec.data import prepared
from distrec.hints import names
from tune import report
from tune import sweep as driver
from tune.space import grid, load, shown
from tune.sweep import check_data
from tune.trial import Trial

SPACE = {
    "data.text": [
        "{title}. {brand}", '"{title}"', "'a'", "a # b", "a: b", "[a]", "[a, b", "- a", "007", "1e3", "2024-05-01", "yes",
        "null", "~/x", "x\ny", " a ", "{title} = {brand}", "ä☃😀 \u2028", "$HOME", "|", "# a", "a\\n", '\\"', "None", "true",
    ],
    "codes.category": [None, "007", "a, b", "~", "[x", "no"],
    "codes.vectors": ["/a #1/b.npy", "a: b", "1e3", "[x]/v.npy", "a=b"],
    "embed.revision": [None, "0123", "1e5", "2024-01-01"],
    "train.lr": [1e-5, 0.001, 0.003, 1e16],
    "train.betas": [[0.9, 0.98], [0.5, 1e-1]],
    "train.samples": [None, "prefixes"],
    "train.trackers": [[], ["tensorboard"], ["wandb", "tensorboard"]],
    "train.async_save": [True, False],
    "codes.hidden": [[8, 4], [5]],
}  # fmt: skip


def sweep(folder, space, *words, **more):
    tree = {"model": {"name": "tiger"}, "data": {"synthetic": {"users": 60, "items": 40}}, **more}
    tree["sweep"] = {"out": str(folder / "s"), "space": space}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return load([str(folder / "sweep.yaml"), *words])


@pytest.mark.parametrize("key", SPACE)
def test_12_a_trial_gets_what_the_space_says_and_best_yaml_trains_the_same(key, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    root = tmp_path / "exp #3: [a] 'b' \"c\" ä=1" / "{sweep}"
    root.mkdir(parents=True)
    more = {"codes": {"name": "rqvae"}} if key == "codes.hidden" else {}
    job, space = sweep(tmp_path, {key: SPACE[key]}, f"sweep.out={root}", **more)
    shared = cfg.shared(job)
    (root / "base.yaml").write_text(yaml.safe_dump(shared, sort_keys=False))
    points = list(grid(space))
    assert [point[key] for point in points] == SPACE[key]
    for point in points:
        trial = Trial.of(point, 3, root)
        trained = cfg.load(trial.words)
        assert trained.out == trial.folder
        assert trained.out.is_relative_to(root)
        assert trained == cfg.load([], {**shared, **point, "seed": 3, "out": str(trial.folder)})
        section, _, name = key.partition(".")
        value = getattr(getattr(trained, section), name)
        if isinstance(point[key], str) and key not in ("codes.vectors", "train.lr"):
            assert value == point[key]
        trial.folder.mkdir(parents=True, exist_ok=True)
        (trial.folder / "metrics.jsonl").write_text(
            json.dumps({"event": "valid", "epoch": 1, "ndcg@10": 0.1, "hr@10": 0.2, "mrr": 0.1}) + "\n"
        )
        for other in root.glob("trials/*/trial.json"):
            other.unlink()
        trial.end("done", "ndcg@10")
        monkeypatch.setattr(report, "curves", lambda *_: None)
        monkeypatch.setattr(report, "parallel", lambda *_: None)
        monkeypatch.setattr(report, "progress", lambda *_: None)
        table = report.write(root, job.sweep, shared)
        assert table.count("\n") == 5
        best = cfg.load([str(root / "best.yaml"), f"out={trial.folder}"])
        assert best == trained


def test_what_no_word_can_say_is_refused_by_name(tmp_path):
    for value, why in (("null", "says None, not 'null'"), ("", "has no value")):
        with pytest.raises(ValueError, match=why):
            sweep(tmp_path, {"codes.category": [value, "a"]})
    with pytest.raises(ValueError, match=r"codes.vectors='a\\nb': a path has no line breaks") as caught:
        sweep(tmp_path, {"codes.vectors": ["a\nb", "c"]})
    assert "\n" not in str(caught.value)
    assert shown("a\nb") == "'a\\nb'"
    assert (shown("a b"), shown(0.00123456), shown(None)) == ("a b", "0.001235", "None")


def test_any_values_of_a_key_stand_in_one_picture(tmp_path):
    values = [3, None, "b", True, 0.5, "a", False, "[1]"]
    assert sorted(values, key=report._order) == [0.5, 3, False, True, "[1]", "a", "b", None]
    points = [
        {
            "point": {"k": value, "x #$y$": i},
            "mean": i / 10,
            "std": None,
            "seeds": [0],
            "values": [i],
            "status": ["done"],
        }
        for i, value in enumerate((None, 2, "{title} $x", "a\nb"))
    ]
    job, _ = sweep(tmp_path, {"train.lr": [0.1]})
    report.curves(tmp_path, points, ["k", "x #$y$"], job.sweep)
    report.parallel(tmp_path, points, ["k"], job.sweep)
    assert (tmp_path / "sensitivity-k.png").is_file()
    assert report.markdown(points, ["k"], job.sweep).splitlines()[4].startswith("| None |")


@pytest.mark.parametrize(
    ("space", "why"),
    [
        (
            {"data.split": ["leave_one_out", "global_time"]},
            "data.split would be leave_one_out in some trials and global_time",
        ),
        ({"data.k_core": [0, 5]}, "data.k_core would be 0"),
        ({"data.duplicates": ["keep", "first"]}, "data.duplicates"),
        ({"data.seed": [0, 1]}, "data.seed"),
        ({"data.negatives": [0, 99]}, "data.negatives"),
        ({"data.synthetic.users": [60, 70]}, "data.synthetic.users would be 60"),
        ({"data.columns.item": ["a", "b"]}, "data.columns.item would be a"),
        ({"score.mask_history": [True, False]}, "score.mask_history would be True"),
        ({"score.mask_history": [None, False]}, "score.mask_history would be True in some trials and False"),
        ({"train.lr": [1e-3, 1e-2], "data.ties": ["shuffle", "file_order"]}, "data.ties"),
        ({"data.valid_share": {"low": 0.1, "high": 0.2, "step": 0.1}}, "data.valid_share"),
    ],
)
def test_32_what_changes_the_data_or_the_protocol_is_not_searched(space, why, tmp_path):
    with pytest.raises(ValueError, match="sweep.space: " + re.escape(why)) as caught:
        sweep(tmp_path, space)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "space",
    [
        {"data.text": ["{title}", "{title}. {brand}"]},
        {"score.mask_history": [None, True]},
        {"score.batch_users": [10, 20], "score.bootstrap": [0, 1]},
        {"model.name": ["sasrec", "markov"], "embed.dtype": ["float16", "float32"], "codes.levels": [2, 3]},
        {"data.k_core": [3], "model.d_model": [12, 24]},
    ],
)
def test_32_what_is_measured_alike_is_searched(space, tmp_path):
    sweep(tmp_path, space)
    with pytest.raises(ValueError, match=r"data\.k_core"):
        sweep(tmp_path, {"data.k_core": [3, 4]}, "sweep.search=random", "sweep.trials=1")


@pytest.mark.parametrize("name", ["sasrec", "tone"])
def test_32_the_usual_history_is_that_of_every_model(name):
    asked = {
        word: cfg.measured(cfg.load([f"model.name={name}", f"score.mask_history={word}"]))
        for word in ("null", "true", "false")
    }
    assert asked["null"] == asked["true"]
    assert asked["false"] != asked["true"]


OTHER = {
    "source": None, "path": None, "items": None, "catalogue": None, "columns": None, "synthetic": {"users": 61},
    "bad_times": None, "duplicates": "first", "k_core": 3, "ties": None, "split": "global_time", "valid_share": 0.2,
    "test_share": 0.2, "negatives": 7, "seed": 1, "root": "elsewhere", "text": "{category}",
}  # fmt: skip


def test_32_what_is_measured_is_what_comparisons_refuse(tmp_path):
    """By the data's own hash, which `compare` asks for: each setting that `measured` names changes it, where this source
    reads it; and a folder does not."""
    base = {"synthetic": {"users": 60, "items": 40, "mean_length": 8}, "root": str(tmp_path / "a"), "negatives": 5}
    before = _stamp(base)
    named = cfg.measured(cfg.load([]))["data"]
    for key in names(knobs.Data):
        if (other := OTHER.get(key)) is None:
            continue
        changed = {
            **base,
            key: str(tmp_path / "b") if key == "root" else {**base[key], **other} if isinstance(other, dict) else other,
        }
        if key.endswith("_share"):
            first = _stamp({**base, "split": "global_time"})
            assert _stamp({**changed, "split": "global_time"}) != first, key
        else:
            is_new = _stamp(changed) != before
            assert is_new == (key in named or key == "text"), key


def _stamp(data):
    return prepared.load(prepared.prepare(cfg.load([], {"data": data}).data)).stamp


@pytest.mark.parametrize("key", ["train", "data.synthetic", "model"])
def test_a_section_is_no_key(key, tmp_path):
    """Its values would take the place of all that the config says of the section."""
    with pytest.raises(
        ValueError,
        match=rf"^sweep\.space\.{key} is a section, and not a key: give values for its keys, such as {key}\.",
    ):
        sweep(tmp_path, {key: [{"lr": 0.1}, {"lr": 0.2}]})


def test_the_data_of_later_trials_are_those_of_the_first(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("user,item,time\n" + "".join(f"{u},{i},160000000{i}\n" for u in "abc" for i in range(9)))
    data = {"source": "table", "path": str(log), "root": str(tmp_path / "art"), "negatives": 0}
    job, _ = sweep(tmp_path, {"train.lr": [0.1, 0.2]}, data=data)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(cfg.shared(job)))
    check_data(tmp_path)
    check_data(tmp_path)
    log.write_text(log.read_text() + "a,9,1700000000\n")
    with pytest.raises(ValueError, match="the data have changed since its first trials"):
        check_data(tmp_path)


def test_a_sweep_that_goes_on_looks_at_its_data_before_any_trial(tmp_path, monkeypatch):
    cluster, search = pytest.importorskip("tune.cluster"), pytest.importorskip("tune.search")
    for module, name in (
        (cluster, "check_machine"),
        (cluster, "machine"),
        (cluster, "join"),
        (cluster, "leave"),
        (driver, "prepare"),
    ):
        monkeypatch.setattr(module, name, lambda *_: ())
    monkeypatch.setattr(search, "search", lambda *_: pytest.fail("a trial was started"))
    sweep(
        tmp_path,
        {"train.lr": [0.1, 0.2]},
        data={"synthetic": {"users": 60, "items": 40}, "root": str(tmp_path / "art")},
    )
    (tmp_path / "s").mkdir()
    (tmp_path / "s/data.sha256").write_text("of others")
    with pytest.raises(ValueError, match="the data have changed since its first trials"):
        driver.main([str(tmp_path / "sweep.yaml")])
