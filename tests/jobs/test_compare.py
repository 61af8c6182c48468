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
from distrec.engine.evaluation import metrics, paired, scoring
from distrec.jobs import compare
from distrec.jobs.comparison import figures, variants
from distrec.jobs.embed import encoder_digest
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
        history = {"masked": scoring.HISTORY[True]}.get(history, history)
        config = cfg.load([f"data.root={small.folder.parent}", *words])
        users, places = small.targets("test")
        ranks = np.asarray(ranks, float)
        told = small.items.data.column("raw").take(small.item[places]).to_pylist()
        table = {
            "user": small.users.data.column("raw").take(users).to_pylist(),
            "target": target or told,
            **alone(ranks).columns(),
            "repeat": np.zeros(len(ranks), bool),
        }
        report = {
            "protocol": {"split": "test", "candidates": "all items", "history": history, "ties": metrics.TIES, "ranks": "exact", "bootstrap": 0},
            "full": metrics.summarise(alone(ranks)),
            "users": len(ranks),
            "repeats": 0,
            "items": small.n_items,
        }  # fmt: skip
        if sampled:
            few = alone(np.minimum(ranks, 21))
            table |= few.columns("sampled_1_20")
            report["sampled_1_20"] = {**metrics.summarise(few), "users": len(ranks)}
        out = place / name
        out.mkdir()
        (out / "config.yaml").write_text(cfg.dump(config))
        made = {**settings(config), "data": small.stamp, **(parts or {})}
        journal = Journal(out / "metrics.jsonl", Ranks())
        training.finish(out, config, small, (None, None), made, journal, report, pl.DataFrame(table), {})
        return name

    return make


def alone(ranks):
    """Nobody ties."""
    ranks = np.asarray(ranks, float)
    return metrics.Standing(ranks - 1, np.zeros(len(ranks)))


def drawn(small, seed, mean=15.0):
    return np.random.default_rng(seed).geometric(1 / mean, len(small.targets("test")[0]))


def told(*words):
    compare.main([*words, "out=told"])
    found = json.loads(Path("told/compare.json").read_text())
    shutil.rmtree("told")
    return found


def edited(run, table=None, **report):
    """A finished run with another table or report, under a stamp of its own."""
    made, files = (store.read_stamp(Path(run))[key] for key in ("made_by", "files"))
    before = json.loads(Path(run, "test.json").read_text())
    Path(run, "test.json").write_text(json.dumps({**before, **report}))
    if table is not None:
        table.write_parquet(Path(run, "ranks.parquet"))
    store.stamp_files(Path(run), made, list(files))


def protocol(run):
    return json.loads(Path(run, "test.json").read_text())["protocol"]


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
    hits = {name: np.stack([metrics.per_user(alone(rank))["hr@10"] for rank in each]) for name, each in ranks.items()}
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


@pytest.mark.parametrize("metric", ["hr@10", "mrr"])
def test_intervals_are_of_the_same_users_and_of_seeds_in_pairs_where_they_are_the_same(small, finished, metric):
    seeds = {"a": (0, 1, 2), "same": (2, 1, 0), "others": (1, 2, 3), "few": (0, 1), "one": (1,)}
    ranks = {name: [drawn(small, [len(name), seed], 12).astype(float) for seed in each] for name, each in seeds.items()}
    runs = [
        variants.read(Path(finished(f"{name}{seed}", rank, *SASREC, f"seed={seed}")), name, [], {})
        for name, each in seeds.items()
        for seed, rank in zip(each, ranks[name], strict=True)
    ]
    order = pl.read_parquet("a0/ranks.parquet")["user"].arg_sort().to_numpy()
    found = figures.figures(variants.variants(runs), "a", metric)
    for protocol, worst in (("full", np.inf), ("sampled_1_20", 21)):
        values = {
            name: np.stack(
                [metrics.per_user(alone(np.minimum(each[n], worst)[order]))[metric] for n in np.argsort(seeds[name])]
            )
            for name, each in ranks.items()
        }
        draws = paired.resampled(np.stack([each.mean(0) for each in values.values()])[None])[:, 0]
        before = values["a"].mean(1)
        for v, (name, each) in enumerate(values.items()):
            own, of_seeds = found[protocol]["variants"][name][metric], each.mean(1)
            assert own["seeds"] == pytest.approx(of_seeds)
            assert own["interval"] == pytest.approx(paired.interval(own["mean"], draws[:, v], [of_seeds]))
            if name != "a":
                one = found[protocol]["comparisons"][name]
                parts = [of_seeds - before] if name == "same" else [of_seeds, before]
                wanted = paired.interval(one["difference"], draws[:, v] - draws[:, 0], parts)
                assert one["difference"] == pytest.approx(of_seeds.mean() - before.mean())
                assert one["interval"] == pytest.approx(wanted)
                assert one["std"] == pytest.approx((each.mean(0) - values["a"].mean(0)).std(ddof=1))
        assert found[protocol]["users"] == each.shape[1]


def test_users_are_paired_by_their_names_and_not_by_their_rows(small, finished):
    runs = [finished("a", drawn(small, 0), *SASREC), finished("b", drawn(small, 1), "model.name=popularity")]
    before = told(*runs)
    assert before["against"] == "sasrec"
    edited("b", pl.read_parquet("b/ranks.parquet").sample(fraction=1, shuffle=True, seed=1))
    assert told(*runs) == before


def test_a_reference_that_finds_nothing_has_no_relative_difference(small, finished):
    rank = drawn(small, 0)
    runs = [finished("a", rank + 30, *SASREC), finished("b", rank, "model.name=popularity")]
    one = told(*runs, "metric=hr@20")["full"]["comparisons"]["popularity"]
    assert one["relative"] is None
    assert one["difference"] == pytest.approx((rank < 21).mean())


def blocks(title):
    """The texts and tables of a section of the page, told apart by how they or their captions begin."""
    (section,) = [each for each in page.load(Path("told")).sections if each.title == title]
    found = {block.caption: block for block in section.blocks if isinstance(block, page.Table)}
    found |= {block.text: block for block in section.blocks if isinstance(block, page.Text)}
    return {name[:9]: block for name, block in found.items()}


def test_a_page_says_what_the_figures_say(small, finished, monkeypatch):
    rank = drawn(small, 0)
    runs = [finished(f"a{seed}", rank + seed, *SASREC, f"seed={seed}") for seed in (0, 1)]
    for model, factor in (("popularity", 2), ("markov", 1)):
        runs.append(finished(model, np.where(rank > 3, factor * rank, 1), f"model.name={model}"))
    compare.main([*runs, "metric=hr@5", "out=told"])
    found = json.loads(Path("told/compare.json").read_text())["full"]
    shown = blocks("All items")
    for row, (name, own) in zip(shown["Mean ± st"].rows, found["variants"].items(), strict=True):
        means = {head.lower(): cell for head, cell in zip(shown["Mean ± st"].head, row, strict=True)}
        assert (row[0], row[1]) == (name, len(own["mrr"]["seeds"]))
        for metric in ("hr@5", "hr@10", "ndcg@10", "mrr"):
            assert means[metric].startswith(f"{own[metric]['mean']:.4f}")
        assert means["hr@5 95 %"] == "{:.4f} – {:.4f}".format(*own["hr@5"]["interval"])
    for row, (name, one) in zip(shown["HR@5 of e"].rows, found["comparisons"].items(), strict=True):
        cells = dict(zip(shown["HR@5 of e"].head, row, strict=True))
        counted = ("better", "worse", "equal")
        assert (cells["variant"], cells["difference"]) == (name, f"{one['difference']:+.4f}")
        assert cells["95 %"] == "{:+.4f} – {:+.4f}".format(*one["interval"])
        assert [cells[key] for key in counted] == [one[key] for key in counted]
        for key, p in (("p", one["p"]), ("p (Holm)", one["p_holm"])):
            assert cells[key] == ("<0.0001" if p < 0.00005 else f"{p:.4f}")
    assert found["comparisons"]["popularity"]["p"] < found["comparisons"]["popularity"]["p_holm"]
    made_of = {row[0]: row for row in blocks("Provenance")[""].rows}
    assert (made_of["prepared data"][4], made_of["checkpoint"][4]) == (4, 2)
    assert " 1 of 6 artefacts are not at hand" in Path("told/page.md").read_text()
    notes = blocks("What this says and what it does not")
    assert "spread between seeds" in notes["Intervals"].text
    assert notes["p is that"].text.startswith("p is that of a sign-flip randomisation test over users")
    shutil.rmtree("told")
    monkeypatch.setattr(paired, "MANY_USERS", 9)
    compare.main([*runs, "out=told"])
    assert "p is that of the normal limit" in Path("told/page.md").read_text()


@pytest.mark.parametrize(
    ("altered", "said"),
    [
        ({"p": 0.01, "p_holm": 0.04}, "popularity is better than sasrec by 0.2000 NDCG@10 (p = 0.0400 after Holm)."),
        ({"difference": -0.2, "interval": [-0.3, -0.1]}, "popularity is worse than sasrec by 0.2000 NDCG@10 (p = <0.0001 after Holm)."),
        ({"p": 0.04, "p_holm": 0.08}, "No difference between popularity and sasrec is shown: +0.2000 NDCG@10 (p = 0.0800 after Holm)."),
        ({"interval": [-0.1, 0.5]}, "(p = <0.0001 after Holm), though other seeds could undo it: the interval holds zero."),
        ({"difference": -0.2, "interval": [-0.5, 0.1]}, "though other seeds could undo it: the interval holds zero."),
    ],
)  # fmt: skip
def test_the_verdict_goes_by_the_corrected_p(small, finished, monkeypatch, altered, said):
    def measured(*given):
        found = truly(*given)
        found["full"]["comparisons"]["popularity"] |= {"difference": 0.2, "interval": [0.1, 0.3], "p": 1e-6, "p_holm": 1e-6, **altered}  # fmt: skip
        return found

    truly = figures.figures
    monkeypatch.setattr(figures, "figures", measured)
    runs = [finished("a", drawn(small, 0), *SASREC), finished("b", drawn(small, 1), "model.name=popularity")]
    compare.main([*runs, "out=told"])
    verdict = page.load(Path("told")).sections[1].blocks[0].text
    assert verdict.endswith(said)
    assert ("undo" in verdict) == ("undo" in said)


def test_a_page_is_not_taken_for_that_of_another_comparison(small, finished, place):
    runs = [finished("a", drawn(small, 0), *SASREC), finished("b", drawn(small, 1), "model.name=popularity")]
    compare.main([*runs, "out=one"])
    for words, key in (
        (["a", "mine:b"], "names"),
        ([*runs, "against=popularity"], "against"),
        ([*runs, "data.root=nowhere"], "links"),
    ):
        with pytest.raises(ValueError, match=f"one is stale: made with {key}="):
            compare.main([*words, "out=one"])
    edited("b", pl.read_parquet("b/ranks.parquet").with_columns(pl.col("better") + 1))
    with pytest.raises(ValueError, match="one is stale: made with runs="):
        compare.main([*runs, "out=one"])
    with pytest.raises(ValueError, match=r"one/inside would lie in the artefact"):
        compare.main([*runs, "out=one/inside"])


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


def codes(place, small, seed, also=None, **more):
    made = {
        "items": "x",
        "vectors": f"v{seed}",
        "encoder": "e",
        "codes": {"name": "gmm", "size": 16, **more},
        "seed": seed,
        **(also or {}),
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


def groups(*runs, label=""):
    """The seeds that stand in one variant, of each."""
    read = [variants.read(Path(run), label, [], {}) for run in runs]
    return [[run.config.seed for run in each.runs] for each in variants.variants(read)]


def test_codes_of_other_vectors_are_another_variant(small, finished, place):
    made_of = ({}, {"text": "t"}, {"max_tokens": 9}, {"normalize": True}, {"encoder": "f"}, {"encoder": None}, {"encoder": None})  # fmt: skip
    runs = []
    for seed, also in enumerate(made_of):
        folder, content = codes(place, small, seed, also)
        words = ["model.name=tone", f"model.codes={folder}", f"seed={seed}"]
        runs.append(finished(f"r{seed}", drawn(small, seed), *words, parts={"codes": content}))
    assert groups(*runs) == [[seed] for seed in range(len(made_of))]


@pytest.fixture
def frellm(small, finished, place):
    """Makes the folder of a finished frellm with the SASRec that it names, and gives both folders."""

    def make(seed, *words, lr=0.1, model="of everybody"):
        kept = place / f"items-{seed}"
        made = {"model.name": "sasrec", "train.lr": lr, "seed": seed}
        table = store.make(kept / "item_table", made, lambda at: (at / "item_table").write_text(f"{seed}"))
        store.stamp_files(kept, made, [])
        key = {"items": store.content(table)}
        tables = store.make(place / f"root/tables-{seed}", key, lambda at: (at / "tables").write_text(f"{seed}"))
        parts = {"tables": store.content(tables), "backbone": model}
        named = ["model.name=frellm", "model.backbone.path=llm", f"model.items={kept}", "data.root=root"]
        return finished(f"r{seed}", drawn(small, seed), *named, f"seed={seed}", *words, parts=parts), kept

    return make


def test_a_frellm_counts_by_what_its_item_vectors_and_its_language_model_are(frellm):
    made = [
        frellm(0), frellm(1, "model.sasrec.d_model=8", "model.sasrec_train.lr=.7"), frellm(2, lr=0.5),
        frellm(3, model="another"), frellm(4, "embed.encoder=builtin"), frellm(5, "model.tfm.order=3"),
    ]  # fmt: skip
    runs = [run for run, _ in made]
    assert groups(*runs) == [[0, 1], [2], [3], [4], [5]]
    assert groups(*runs[:2], label="mine") == [[0, 1]]
    for _, items in made[:2]:
        shutil.rmtree(items)
    assert groups(*runs[:2]) == [[0], [1]]  # nobody knows any more what they were
    assert groups(*runs[:2], label="mine") == [[0, 1]]
    shutil.rmtree("root")
    assert groups(runs[0], runs[2]) == [[0], [2]]


def test_random_twins_of_one_language_model_are_one(frellm, place):
    contents = []
    for n, (source, seed) in enumerate((("x", 0), ("x", 1), ("y", 2))):
        made = {"random": {"config.json": source}, "dtype": "float32", "seed": seed}
        twin = store.make(place / f"root/llm-{n}", made, lambda at, n=n: (at / "model.safetensors").write_text(f"{n}"))
        contents.append(encoder_digest(twin))
    runs = [frellm(seed, "model.backbone.init=random", model=content)[0] for seed, content in enumerate(contents)]
    assert groups(*runs[:2]) == [[0, 1]]
    with pytest.raises(ValueError, match=r"two variants are called 'backbone\.path=llm'"):
        groups(*runs)


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
        (["a", "again/../a"], "a is given twice"),
        (["a", "again"], "again has seed=0 as a has"),
        (["a", "nowhere"], r"nowhere is no finished run of distrec \(no stamp\.json in it\)"),
        (["a", "metric=hr@7"], "metric=hr@7: it is one of hr@1"),
        (["a", "against=b"], "against=b: the variants are sasrec"),
        (["a", "seed=1"], "compare takes runs and against=…"),
        (["a", "out="], "compare takes runs and against=…"),
        (["a", "kept"], r"kept cannot be compared with a: protocol\.history is 'kept', not 'masked where .*'; .*score\.mask_history"),
        (["a", "elsewhere"], r"elsewhere cannot be compared with a: other data"),
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
    edited("elsewhere", data="of others")
    (place / "data").symlink_to(small.folder)
    with pytest.raises(ValueError, match=message):
        compare.main([*words, "out=told"] if "out=" not in words else words)
    assert not (place / "told").exists()


def test_other_targets_repeated_or_other_users_sampled_are_refused(small, finished):
    for run in "ab":
        finished(run, drawn(small, len(run)), *SASREC, f"seed={ord(run)}")
    found = json.loads(Path("b/test.json").read_text())
    part = found["sampled_1_20"]
    edited("b", sampled_1_20=part | {"users": 7})
    with pytest.raises(
        ValueError, match=rf"b cannot be compared with a: users of sampled_1_20 is 7, not {part['users']}"
    ):
        told("a", "b")
    edited("b", sampled_1_20=part, repeats=3)
    with pytest.raises(ValueError, match="b cannot be compared with a: repeats is 3, not 0"):
        told("a", "b")


def test_every_run_was_measured_as_the_first_one(small, finished):
    for seed, run in enumerate("abc"):
        finished(run, drawn(small, seed), *SASREC, f"seed={seed}")
    before = protocol("c")
    edited("c", protocol={**before, "bootstrap": 9, "ranks": "the first 50 generated"})
    assert list(told("a", "b", "c")["runs"]) == ["sasrec"]
    for key, value in (("split", "valid"), ("candidates", "some"), ("filter", "new items")):
        edited("c", protocol={**before, key: value})
        for runs, said in (("abc", "c cannot be compared with a"), ("cab", "a cannot be compared with c")):
            with pytest.raises(ValueError, match=rf"{said}: protocol\.{key} is"):
                told(*runs)
    edited("c", pl.read_parquet("c/ranks.parquet").with_columns(pl.col("user") + "x"), protocol=before)
    with pytest.raises(ValueError, match=r"c cannot be compared with a: ranks\.parquet has another user"):
        told("a", "b", "c")


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
