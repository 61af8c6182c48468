"""Runs put together by seed and named, figures against oracles, and everything that cannot be compared refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from commands import distrec
from scipy import stats

from distrec import config as cfg
from distrec.data import store
from distrec.engine.evaluation import metrics
from distrec.jobs import compare
from distrec.jobs.pages import page
from distrec.jobs.parts import training
from distrec.jobs.parts.identity import settings
from distrec.runtime import Journal, Ranks

FILES = {"page.json", "page.md", "tables.tex", "compare.json", "metric.svg", "metric.png"}
BOTH = {"difference.svg", "difference.png"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def finished(small, place):
    """Makes the folder of a finished run with these ranks, as training leaves it."""

    def make(name, ranks, *words, history="masked", sampled=True, parts=None, target=None):
        config = cfg.load([f"data.root={small.folder.parent}", *words])
        users, places = small.targets("test")
        ranks = np.asarray(ranks, float)
        told = small.items.data.column("raw").take(small.item[places]).to_pylist()
        table = {
            "user": small.users.data.column("raw").take(users).to_pylist(),
            "target": target or told,
            "rank": ranks,
        }
        report = {
            "protocol": {"split": "test", "candidates": "all items", "history": history, "ties": "expected rank", "ranks": "exact", "bootstrap": 0},
            "full": metrics.summarise(ranks),
            "users": len(ranks),
            "items": small.n_items,
        }  # fmt: skip
        if sampled:
            table["rank_sampled_1_20"] = np.minimum(ranks, 21)
            report["sampled_1_20"] = metrics.summarise(table["rank_sampled_1_20"])
        out = place / name
        out.mkdir()
        (out / "config.yaml").write_text(cfg.dump(config))
        made = {**settings(config), "data": small.stamp, **(parts or {})}
        journal = Journal(out / "metrics.jsonl", Ranks())
        training.finish(out, config, small, (None, None), made, journal, report, pl.DataFrame(table))
        return name

    return make


def drawn(small, seed, mean=15.0):
    return np.random.default_rng(seed).geometric(1 / mean, len(small.targets("test")[0]))


def told(*words):
    compare.main([*words, "out=told"])
    found = json.loads(Path("told/compare.json").read_text())
    shutil.rmtree("told")
    return found


SASREC = ["model.name=sasrec", "model.d_model=16"]


def test_figures_are_those_of_the_ranks(small, finished, capsys):
    ranks = {"a": [drawn(small, seed) for seed in range(3)], "b": [drawn(small, 10 + seed, 9) for seed in range(2)]}
    ranks["c"] = [np.where(np.arange(len(ranks["a"][0])) < 7, 1, ranks["a"][0])]
    runs = []
    for name, lr in (("a", 0.1), ("b", 0.2), ("c", 0.3)):
        for seed, rank in enumerate(ranks[name]):
            runs.append(finished(f"{name}{seed}", rank, *SASREC, f"train.lr={lr}", f"seed={seed}"))
    compare.main([*reversed(runs), "against=train.lr=0.1", "metric=hr@10", "out=told"])
    found = json.loads(Path("told/compare.json").read_text())
    hits = {
        name: np.stack([metrics.per_user(rank.astype(float))["hr@10"] for rank in each]) for name, each in ranks.items()
    }
    for name, lr in (("a", 0.1), ("b", 0.2)):
        own = found["full"]["variants"][f"train.lr={lr}"]["hr@10"]
        assert own["seeds"] == pytest.approx(hits[name].mean(1).tolist())
        assert (own["mean"], own["std"]) == pytest.approx((hits[name].mean(), hits[name].mean(1).std(ddof=1)))
        assert own["interval"][0] < own["mean"] < own["interval"][1]
    assert found["full"]["variants"]["train.lr=0.3"]["mrr"]["std"] is None
    p = []
    for name, lr in (("c", 0.3), ("b", 0.2)):
        one = found["full"]["comparisons"][f"train.lr={lr}"]
        d = hits[name].mean(0) - hits["a"].mean(0)
        assert one["difference"] == pytest.approx(d.mean())
        assert one["relative"] == pytest.approx(d.mean() / hits["a"].mean())
        assert (one["better"], one["worse"]) == ((d > 1e-9).sum(), (d < -1e-9).sum())
        assert one["better"] + one["worse"] + one["equal"] == len(d)
        wanted = stats.permutation_test((d,), np.sum, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(1))  # fmt: skip
        assert one["p"] == pytest.approx(wanted.pvalue, abs=0.02)
        assert one["detectable"] == pytest.approx(2.801585 * d.std(ddof=1) / len(d) ** 0.5, rel=1e-4)
        assert one["interval"][0] < d.mean() < one["interval"][1]
        p.append(one["p"])
    adjusted = [one["p_holm"] for one in found["full"]["comparisons"].values()]
    assert min(adjusted) == pytest.approx(min(1, 2 * min(p)))
    assert "train.lr=0.1" not in found["full"]["comparisons"]
    assert set(found["sampled_1_20"]) == {"users", "variants", "comparisons"}
    shown = capsys.readouterr().out
    assert f"| train.lr=0.1 | 3 | {hits['a'].mean():.4f} ± {hits['a'].mean(1).std(ddof=1):.4f} |" in shown
    assert shown.splitlines()[-1] == "told"


def test_a_comparison_is_an_artefact_the_same_each_time(small, finished, place):
    runs = [finished(f"{seed}", drawn(small, seed), *SASREC, f"train.lr=0.{1 + seed}") for seed in range(2)]
    for out in ("one", "two"):
        compare.main([*runs, f"out={out}"])
    stamp = store.verify(place / "one")
    assert set(stamp["files"]) == FILES | BOTH
    assert stamp["files"] == store.verify(place / "two")["files"]
    assert stamp["made_by"]["runs"] == {run: store.content(place / run) for run in runs}
    compare.main([*runs, "out=one"])
    with pytest.raises(ValueError, match=r"one is stale: made with metric='ndcg@10', now 'mrr'"):
        compare.main([*runs, "out=one", "metric=mrr"])
    compare.main(runs)
    assert len([path for path in (place / "comparisons").iterdir() if path.is_dir()]) == 1
    found = page.load(place / "one")
    text = (place / "one/page.md").read_text()
    assert [section.title for section in found.sections] == [
        "What is compared", "All items", "One target among 20 sampled items", "What this says and what it does not", "Provenance",
    ]  # fmt: skip
    for words in (
        "share them",
        "sign-flip",
        "nothing is known of others",
        "80 % of cases",
        "checkpoint",
        "not verified",
    ):
        assert words in text


NAMED = [
    ([["model.name=popularity"], ["model.name=markov"]], ["popularity", "markov"]),
    ([["model.name=markov"], ["model.name=markov", "model.decay=.5"]], ["decay=0.7", "decay=0.5"]),
    (
        [["model.name=popularity"], SASREC, [*SASREC, "train.lr=.1"]],
        ["popularity", "sasrec, train.lr=0.001", "sasrec, train.lr=0.1"],
    ),
    (
        [[*SASREC, f"model.dropout={d}", f"train.lr={lr}"] for d, lr in ((0.1, 0.1), (0.2, 0.1), (0.2, 0.2))],
        ["dropout=0.1, train.lr=0.1", "dropout=0.2, train.lr=0.1", "dropout=0.2, train.lr=0.2"],
    ),
    (
        [SASREC, ["model.name=sasrec", "model.d_model=8", "model.dropout=0", "train.lr=.1", "train.clip=9"]],
        ["d_model=16", "d_model=8"],
    ),
    ([["model.name=tone"], ["model.name=tone", "codes.name=kmeans"]], ["codes.name=gmm", "codes.name=kmeans"]),
    (
        [["model.name=tone"], ["model.name=tone", "embed.encoder=builtin"]],
        ["embed.encoder=none", "embed.encoder=builtin"],
    ),
]


@pytest.mark.parametrize(("words", "names"), NAMED, ids=lambda value: " ".join(map(str, value))[:40])
def test_variants_are_named_by_what_they_differ_in(small, finished, words, names):
    runs = [
        finished(f"{n}-{seed}", drawn(small, seed), *each, f"seed={seed}")
        for n, each in enumerate(words)
        for seed in (0, 1)
    ]
    found = told(*runs)
    assert list(found["full"]["variants"]) == names
    assert [list(each.values()) for each in found["runs"].values()] == [[0, 1]] * len(words)


def test_where_things_lie_and_how_they_are_run_makes_no_variant(small, finished, place):
    shutil.copytree(small.folder, place / "moved" / small.folder.name)
    words = ["data.root=moved", "train.log_steps=7", "train.save_steps=3", "score.batch_users=3", "codes.name=kmeans"]
    runs = [finished("a", drawn(small, 0), *SASREC), finished("b", drawn(small, 1), *SASREC, *words, "seed=1", "out=b")]
    assert list(told(*runs)["full"]["variants"]) == ["sasrec"]


def codes(place, small, seed, **more):
    made = {
        "items": "x",
        "vectors": f"v{seed}",
        "encoder": "e",
        "codes": {"name": "gmm", "size": 16, **more},
        "seed": seed,
    }
    target = store.folder(small.folder.parent, "codes", {**made, "of": place.name})
    return target, store.content(
        store.make(target, made, lambda at: (at / "codes.safetensors").write_text(f"{place}{made}"))
    )


def test_codes_that_a_config_names_count_by_what_made_them(small, finished, place):
    runs = []
    for n, (seed, size) in enumerate(((0, 16), (1, 16), (0, 32), (1, 32))):
        folder, content = codes(place, small, seed, size=size)
        words = ["model.name=tone", f"model.codes={folder}", f"seed={seed}"]
        runs.append(finished(f"r{n}", drawn(small, n), *words, parts={"codes": content}))
    found = told(*runs)
    assert list(found["full"]["variants"]) == ["codes.size=16", "codes.size=32"]
    shutil.rmtree(folder)
    assert len(told(*runs)["full"]["variants"]) == 3  # nobody knows any more what the last one was
    with pytest.raises(ValueError, match=r"r3 and r2 are both named 'b' but differ in codes\.name"):
        told(*(f"a:{run}" for run in runs[:2]), *(f"b:{run}" for run in runs[2:]))


def test_names_of_one_s_own(small, finished):
    runs = [finished(f"r{seed}", drawn(small, seed), *SASREC, f"seed={seed}") for seed in range(2)]
    found = told(f"before it:{runs[0]}", f"after:{runs[1]}", "against=after")
    assert list(found["full"]["variants"]) == ["before it", "after"]
    assert list(found["full"]["comparisons"]) == ["before it"]
    assert list(told(*(f"mine:{run}" for run in runs))["full"]["variants"]) == ["mine"]
    other = finished("other", drawn(small, 3), *SASREC, "train.lr=.5")
    with pytest.raises(
        ValueError, match=r"other and r0 are both named 'mine' but differ in train\.lr \(0\.5, 0\.001\)"
    ):
        told(f"mine:{runs[0]}", f"mine:{other}")
    with pytest.raises(ValueError, match=r"two variants are called 'train\.lr=0\.5'"):
        told(f"train.lr=0.5:{runs[0]}", other)


def test_one_variant_alone_and_a_protocol_that_not_all_have(small, finished, place):
    runs = [finished(f"r{seed}", drawn(small, seed), *SASREC, f"seed={seed}", sampled=seed > 0) for seed in range(2)]
    compare.main([*runs, "out=told"])
    assert set(store.verify(place / "told")["files"]) == FILES
    found = json.loads((place / "told/compare.json").read_text())
    assert found["full"]["comparisons"] == {}
    assert "sampled_1_20" not in found
    assert "p is that of" not in (place / "told/page.md").read_text()


def test_what_a_generative_model_does_not_list_counts_as_nothing(small, finished):
    rank = drawn(small, 0).astype(float)
    lost = np.where(rank > 5, np.inf, rank)
    found = told(finished("a", rank, *SASREC), finished("b", lost, "model.name=popularity"), "metric=mrr")
    assert found["full"]["variants"]["popularity"]["mrr"]["mean"] == pytest.approx(
        np.mean(np.where(rank > 5, 0, 1 / rank))
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "compare what"),
        (["a", "./a"], "a is given twice"),
        (["a", "again"], "again has seed=0 as a has"),
        (["a", "nowhere"], r"nowhere is no finished run of distrec \(no stamp\.json in it\)"),
        (["a", "metric=hr@7"], "metric=hr@7: it is one of hr@1"),
        (["a", "against=b"], "against=b: the variants are sasrec"),
        (["a", "seed=1"], "compare takes runs and against=…"),
        (["a", "out="], "compare takes runs and against=…"),
        (["a", "kept"], r"kept cannot be compared with a: protocol\.history is 'kept', not 'masked'; .*score\.mask_history"),
        (["a", "elsewhere"], r"elsewhere cannot be compared with a: data is"),
        (["a", "targets"], r"targets cannot be compared with a: ranks\.parquet has another target"),
        (["a", "data"], r"data is no finished run of distrec: its stamp names no config\.yaml"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(small, finished, place, words, message):
    finished("a", drawn(small, 0), *SASREC)
    finished("again", drawn(small, 1), *SASREC)
    finished("kept", drawn(small, 0), "model.name=popularity", history="kept")
    raw = list(small.items["raw"])
    finished("targets", drawn(small, 0), "model.name=popularity", target=[raw[0]] * len(drawn(small, 0)))
    finished("elsewhere", drawn(small, 0), "model.name=popularity")
    report = json.loads((place / "elsewhere/test.json").read_text())
    (place / "elsewhere/test.json").write_text(json.dumps({**report, "data": "of others"}))
    made = store.read_stamp(place / "elsewhere")["made_by"]
    store.stamp_files(place / "elsewhere", made, ["config.yaml", "metrics.jsonl", "test.json", "ranks.parquet"])
    (place / "data").symlink_to(small.folder)
    with pytest.raises(ValueError, match=message):
        compare.main([*words, "out=told"] if "out=" not in words else words)
    assert not (place / "told").exists()


@pytest.mark.parametrize("file", ["config.yaml", "metrics.jsonl", "test.json", "ranks.parquet", "stamp.json"])
def test_a_run_that_was_changed_is_refused(small, finished, place, file):
    finished("a", drawn(small, 0), *SASREC)
    run = place / finished("b", drawn(small, 1), "model.name=popularity")
    whole = (run / file).read_bytes()
    (run / file).write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
    with pytest.raises(ValueError, match=f"^b is corrupt: {file} is not what was written"):
        told("a", "b")


def test_changed_data_are_refused_and_moved_ones_only_said(small, finished, place):
    shutil.copytree(small.folder, place / "artefacts" / small.folder.name)
    finished("a", drawn(small, 0), *SASREC, "data.root=artefacts")
    finished("b", drawn(small, 1), "model.name=popularity", "data.root=artefacts")
    shutil.move(place / "artefacts", place / "moved")
    compare.main(["a", "b", "out=told"])
    text = (place / "told/page.md").read_text()
    assert "| prepared data | – |" in text
    assert "not at hand" in text
    shutil.rmtree("told")
    told("a", "b", "data.root=moved")
    with (place / "moved" / small.folder.name / "users.arrow").open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ValueError, match=r"is corrupt: users\.arrow"):
        told("a", "b", "data.root=moved")


@pytest.mark.slow
def test_the_command(place):
    words = ["data.synthetic.users=120", "data.synthetic.items=150", "data.negatives=20"]
    for name in ("popularity", "markov"):
        distrec("train", *words, f"model.name={name}", f"out=runs/{name}", cwd=place)
    done = distrec("compare", "runs/popularity", "runs/markov", "metric=mrr", cwd=place)
    assert "| markov | 1 |" in done.stdout
    folder = place / done.stdout.splitlines()[-1]
    assert set(store.verify(folder)["files"]) == FILES | BOTH
    refused = distrec("compare", "runs/popularity", "artefacts", cwd=place, code=2)
    assert refused.stderr.splitlines()[-1].startswith("error: artefacts is no finished run")
    assert "against=NAME" in distrec("compare", "--help", cwd=place).stdout
