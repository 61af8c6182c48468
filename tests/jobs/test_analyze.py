"""distrec analyze on finished runs: what it says against hand counts, what it must not read, what it refuses."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import scipy.fft
import torch
from commands import distrec
from decoders import saved

from distrec import config as cfg
from distrec import knobs
from distrec.data import store
from distrec.data.batches import Batch
from distrec.freq import measure as big
from distrec.freq.locality import at_random, by_lag
from distrec.jobs import analyze
from distrec.jobs.analysis import controls, locality, retention, spectra
from distrec.jobs.analysis.attention import attention
from distrec.jobs.analysis.subject import Part, Subject
from distrec.jobs.analysis.tables import graph_of
from distrec.jobs.pages import page
from distrec.models.sasrec import SasRec
from distrec.runtime import Ranks

SMALL = [
    "data.synthetic.users=150", "data.synthetic.items=120", "data.negatives=0", "score.bootstrap=0", "train.epochs=2",
    "train.batch_tokens=500",
]  # fmt: skip
SASREC = [*SMALL, "model.name=sasrec", "model.d_model=16"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two runs of SASRec that were analysed, one against the other."""
    folder = tmp_path_factory.mktemp("analyze")
    distrec("train", *SASREC, "out=run", cwd=folder)
    distrec("train", *SASREC, "seed=1", "out=other", cwd=folder)
    distrec("analyze", "out=run", "against=other", "users=200", cwd=folder)
    return folder


def figures(run):
    return json.loads((run / "analysis/analysis.json").read_text())


def test_every_stage_and_line_is_told_for_every_measure(place):
    found = figures(place / "run")["spectra"]["low"]
    assert set(found) == set(spectra.MEASURES)
    assert list(found["time"]["stages"]) == ["input", "layer 1", "layer 2", "scored", "noise", "constant"]
    assert found["time"]["stages"]["constant"] == pytest.approx(1)
    assert found["published"]["stages"]["noise"] == pytest.approx(0.27, abs=0.04)
    for measure in ("graph", "published", "time"):
        assert max(found[measure]["stages"][name] for name in ("noise", "input", "scored")) < found[measure]["stages"]["constant"]  # fmt: skip
    users = pl.read_parquet(place / "run/analysis/spectra.parquet")
    own = users.filter((pl.col("measure") == "graph") & (pl.col("stage") == "layer 2"))["low"]
    assert own.mean() == pytest.approx(found["graph"]["stages"]["layer 2"])
    assert own.len() == figures(place / "run")["spectra"]["users"] <= 150


def test_the_whole_table_is_the_runs_own_accuracy(place):
    found, lines = figures(place / "run")["retention"], (place / "run/metrics.jsonl").read_text().splitlines()
    best = max(line["ndcg@10"] for line in map(json.loads, lines) if line["event"] == "valid")
    for name in ("lowest", "highest", "shuffled"):
        assert found[name][-1] == pytest.approx(best)
    assert figures(place / "run")["controls"]["as they were"]["ndcg@10"] == [pytest.approx(best)]


def test_pages_name_pictures_that_are_there(place):
    folder = place / "run/analysis"
    told = page.load(folder)
    assert len(told.sections) == 8
    for section in told.sections:
        for block in section.blocks:
            if isinstance(block, page.Picture):
                assert (folder / f"{block.name}.png").stat().st_size > 5000
                assert (folder / f"{block.name}.svg").read_text().startswith("<?xml")
                assert block.name in (folder / "page.md").read_text()
    assert sum(row["users"] for row in figures(place / "run")["locality"]["gain"]) <= 150
    assert store.verify(folder)["made_by"]["run"] == store.content(place / "run")


def test_a_decile_of_one_user_has_no_error(subject, tmp_path):
    raw = subject.data.users.data.column("raw").to_pylist()[:12]
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
        pl.DataFrame(
            {"user": raw, "target": raw, "better": [0] * 12, "ties": [0] * 12, "rank": [1.0] * 12}
        ).write_parquet(tmp_path / name / "ranks.parquet")
    one = replace(subject, out=tmp_path / "own", against=tmp_path / "other")
    found = locality.by_decile(one, np.ones(subject.data.n_users))
    assert [row["error"] is None for row in found] == [row["users"] == 1 for row in found]
    assert {row["users"] for row in found} == {1, 2}
    *_, table, picture = locality.gains(one, found)
    assert [row[3] is None for row in table.rows] == [row["users"] == 1 for row in found]
    assert (subject.folder / f"{picture.name}.svg").is_file()


def test_a_gain_is_this_run_less_the_other_on_the_same_targets_from_the_least_local_users_up(subject, tmp_path):
    raw = subject.data.users.data.column("raw").to_pylist()[:41]
    value = {1.0: 1.0, 3.0: 0.5, 99.0: 0.0}  # NDCG@10 of a rank
    own = [1.0, 3.0, 99.0, 1.0] * 10
    for name, ranks, targets in (("own", [*own, 1.0], raw), ("other", [3.0] * 40 + [99.0], [*raw[:40], "another"])):
        (tmp_path / name).mkdir()
        better = [rank - 1 for rank in ranks]
        table = pl.DataFrame({"user": raw, "target": targets, "rank": ranks, "better": better, "ties": [0.0] * 41})
        table.write_parquet(tmp_path / name / "ranks.parquet")
    one = replace(subject, out=tmp_path / "own", against=tmp_path / "other")
    local = np.full(subject.data.n_users, 7.0)
    local[:41] = np.arange(41)[::-1]  # the user of another target is the least local, and left out
    found = locality.by_decile(one, local)
    gains = [value[rank] - 0.5 for rank in own][::-1]
    assert [row["users"] for row in found] == [4] * 10
    assert [row["decile"] for row in found] == list(range(1, 11))
    for i, row in enumerate(found):
        part = np.array(gains[4 * i : 4 * i + 4])
        assert row["gain"] == pytest.approx(part.mean())
        assert row["error"] == pytest.approx(part.std(ddof=1) / 2)
        assert row["locality"] == pytest.approx(np.arange(1, 41)[4 * i : 4 * i + 4].mean())


def test_what_order_says_nothing_of_is_counted_by_hand(subject):
    """Of two users with 4 training interactions each: the first of a history follows nobody, whatever its time."""
    first, second = np.flatnonzero(subject.data.train_end - subject.data.start[:-1] >= 4)[:2]
    data, time = subject.data, np.arange(len(subject.data.time))
    for user, times in ((first, [5, 5, 5, 6]), (second, [6, 7, 7, 8])):
        time[data.start[user] : data.start[user] + 4] = times
    before = np.zeros(int(data.start[-1]), dtype=bool)
    for user in (first, second):
        before[data.start[user] : data.start[user] + 4] = True
    assert controls._tied(replace(data, time=time), before) == pytest.approx(3 / 6)
    assert controls._spread([(0.1, 1.0), (0.1, 3.0)]) == pytest.approx(2**0.5)
    assert controls._spread([(0.1, 1.0)]) is None


def test_energies_of_each_measure_are_those_of_their_words(subject):
    """Against numpy, user by user: which graph, whose counts, which states."""
    rng = np.random.default_rng(0)
    weights = spectra.cooccurrences(subject.data)
    often = np.argsort(-weights.sum(0))[:9]
    items = np.stack([rng.permutation(often), rng.permutation(often)])
    states = rng.normal(size=(1, 2, 9, 5)) * rng.uniform(0.5, 3, size=(1, 2, 9, 1))
    found = spectra.measured(torch.from_numpy(items), torch.from_numpy(states), weights)

    def power(x, own, is_own):
        w = weights.toarray()[np.ix_(own, own)] - (0 if is_own else 1)
        w = np.clip(w * (1 - np.eye(len(own))), 0, None)
        scale = 1 / np.sqrt(w.sum(1))
        _, vectors = np.linalg.eigh(np.eye(len(own)) - scale[:, None] * w * scale)
        energy = np.square(vectors.T @ x).sum(1)
        return energy / energy.sum()

    for user in (0, 1):
        x = states[0, user]
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        wanted = {
            "published": power(x[:-1], items[user, 1:], True),
            "graph": power(unit, items[user], False),
            "centred": power(unit - unit.mean(0), items[user], False),
        }
        for measure, energy in wanted.items():
            np.testing.assert_allclose(found[measure][0, user], energy, atol=1e-9, err_msg=measure)
        along = np.square(scipy.fft.dct(unit, axis=0, norm="ortho")).sum(1)
        np.testing.assert_allclose(found["time"][0, user], along / along.sum(), atol=1e-9)
        assert float(found["mean"][0, user, 0]) == pytest.approx(along[0] / along.sum())


def test_means_by_lag_are_over_pairs_and_chance_is_that_of_the_users_who_have_them(subject):
    data = subject.data
    means, chances, users = locality.measured(data, 5)
    weights = spectra.cooccurrences(data)
    item, start = data.training()
    total, n = at_random(weights, item, start, 5)
    for lag in (1, 5, 13):
        near, pairs = by_lag(weights, item, start, lag)
        assert means[str(lag)] == pytest.approx(near.sum() / pairs.sum())
        own = [total[u] / n[u] for u in range(data.n_users) for _ in range(pairs[u]) if n[u]]
        assert chances[str(lag)] == pytest.approx(sum(own) / pairs.sum())
    near, pairs = by_lag(weights, item, start, 1)
    user = int(np.argmax(pairs))
    assert users[user] == pytest.approx(near[user] / pairs[user] / (total[user] / n[user]))


def test_what_is_kept_of_a_table_adds_up_and_the_control_is_the_same_size(subject, monkeypatch):
    tables = []
    monkeypatch.setattr(retention, "ndcg", lambda _, model, __: (tables.append(model.table), 0.0)[1])
    found = retention.retention(subject).figures
    n = len(retention.SHARES)
    table = subject.model.item_vectors(slice(0, subject.data.n_items)).detach()
    lowest, highest, shuffled = tables[:n], tables[n : 2 * n], tables[2 * n :]
    for whole in (lowest[-1], highest[-1], shuffled[-1]):
        torch.testing.assert_close(whole, table, atol=1e-5, rtol=1e-4)
    for i, share in enumerate(retention.SHARES):
        if 1 - share in retention.SHARES:
            j = retention.SHARES.index(1 - share)
            torch.testing.assert_close(highest[i] + lowest[j], table, atol=1e-5, rtol=1e-4)
        rank, control = (int(torch.linalg.matrix_rank(part.double(), tol=1e-4)) for part in (lowest[i], shuffled[i]))
        assert rank == control
        assert found["noise"][i] == pytest.approx(share, abs=0.1)
    energy = [float(part.square().sum()) for part in highest]
    assert energy == sorted(energy)


def test_a_soft_edge_keeps_the_share_of_white_noises_energy_that_it_says(subject, monkeypatch):
    monkeypatch.setattr(big, "DENSE", 10)
    monkeypatch.setattr(retention, "ndcg", lambda *_: 0.0)
    found = retention.retention(subject).figures
    assert not found["is_exact"]
    assert found["noise"] == pytest.approx(list(retention.SHARES), abs=1e-4)


def test_what_is_lost_is_a_share_of_the_input_with_an_interval_over_users():
    rng = np.random.default_rng(1)
    before = rng.uniform(0.4, 0.6, 400)
    after = before * 0.8 + rng.normal(size=400) * 0.05
    low, (bottom, top) = spectra.lost(before, after)
    assert low == pytest.approx(0.2, abs=0.02)
    half = 1.96 * np.std(after - (1 - low) * before, ddof=1) / 20 / before.mean()  # of a ratio of means
    assert (low - bottom, top - low) == (pytest.approx(half, rel=0.15), pytest.approx(half, rel=0.15))
    values = rng.normal(size=100)
    half = 1.96 * values.std(ddof=1) / 10
    assert spectra._interval(values) == pytest.approx([values.mean() - half, values.mean() + half])


def test_shuffling_moves_every_place_of_a_history_and_padding_stays_in_front(subject):
    items, is_item = torch.arange(60).reshape(2, 30), torch.arange(30).expand(2, -1) >= torch.tensor([[0], [20]])
    batch = Batch(torch.arange(2), items, is_item, items, is_item)
    found = spectra.shuffle(batch, torch.Generator().manual_seed(0))
    assert not torch.equal(found.items[0], items[0])
    assert found.items[1, 20:].sort().values.tolist() == items[1, 20:].tolist()


def test_users_are_drawn_by_the_seed(subject):
    def drawn(seed):
        return replace(subject, users=20, seed=seed).drawn.targets("valid")[0].tolist()

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


def test_a_lag_that_no_history_has_is_not_known(subject):
    data = subject.data
    end = np.minimum(data.train_end, data.start[:-1] + 4)
    short = replace(subject, data=replace(data, train_end=end))
    part = locality.locality(short)
    assert part.figures["by_lag"]["3"] is not None
    assert part.figures["by_lag"]["5"] is part.figures["by_lag"]["21"] is None
    table = next(block for block in part.section.blocks if isinstance(block, page.Table))
    assert table.rows[-1] == ("21", None, None, None)


def test_it_is_made_once_and_anew_when_settings_change(place, monkeypatch):
    stamp = (place / "run/analysis/stamp.json").read_bytes()
    again = distrec("analyze", "out=run", "against=other", "users=200", cwd=place)
    assert "is there already" in again.stderr
    assert (place / "run/analysis/stamp.json").read_bytes() == stamp
    shutil.copytree(place / "run", place / "copy")
    monkeypatch.chdir(place)
    store.remove(place / "copy/analysis")
    analyze.main(["out=copy", "parts=learnt,locality,learnt"])
    assert list(figures(place / "copy")) == ["locality", "learnt"]
    analyze.main(["out=copy", "parts=controls"])
    assert list(figures(place / "copy")) == ["locality", "controls", "learnt"]
    analyze.main(["out=copy", "parts=learnt", "users=60"])
    assert list(figures(place / "copy")) == ["locality", "controls", "learnt"]  # with the other settings
    assert store.read_stamp(place / "copy/analysis")["made_by"]["users"] == 60
    monkeypatch.chdir(place / "copy")
    analyze.main(["out=.", "parts=learnt", "users=60"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["out=nowhere"], "is no finished run"),
        ([], "is no finished run"),
        (["out=run", "users=none"], "users=none: a whole number"),
        (["out=run", "parts=spectra,moon"], "parts=moon: no such part"),
        (["out=run", "model.name=tone"], "not model.name"),
        (["out=run", "against=nowhere"], "against='nowhere'"),
    ],
)
def test_wrong_words_are_told(place, words, told, monkeypatch):
    monkeypatch.chdir(place)
    with pytest.raises(ValueError, match=re.escape(told)):
        analyze.main(words)


@pytest.mark.parametrize("name", ["test.json", "ranks.parquet", "metrics.jsonl", "config.yaml"])
def test_what_was_changed_since_is_refused_by_name(place, tmp_path, name):
    shutil.copytree(place / "run", tmp_path / "run")
    with (tmp_path / "run" / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(ValueError, match=name):
        analyze.main([f"out={tmp_path / 'run'}"])


def test_a_changed_analysis_is_refused(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    with (tmp_path / "run/analysis/retention.svg").open("ab") as file:
        file.write(b"<!-- -->")
    done = distrec("analyze", "out=run", cwd=tmp_path, code=2)
    assert "retention.svg" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_analysis_that_fails_leaves_the_one_before(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    before = (tmp_path / "run/analysis/stamp.json").read_bytes()
    distrec("analyze", "out=run", "users=50", f"data.root={place / 'artefacts'}", cwd=tmp_path, code=2)
    store.verify(tmp_path / "run/analysis")
    assert (tmp_path / "run/analysis/stamp.json").read_bytes() == before


@pytest.mark.slow
def test_a_language_model_and_codes_are_analysed_too(tmp_path):
    saved(tmp_path / "llm", width=32, layers=2)
    frellm = ["model.name=frellm", "model.tfm.mode=causal", "model.max_len=16", "model.hidden=16", "model.sasrec.d_model=8",
              "model.sasrec_train.epochs=2", "model.backbone.path=llm"]  # fmt: skip
    distrec("train", *SMALL, *frellm, "out=frellm", cwd=tmp_path)
    distrec("analyze", "out=frellm", cwd=tmp_path)
    below = figures(tmp_path / "frellm")["items"]["below"]
    assert {f"{name} vectors, filtered on the graph" for name in ("collaborative", "text")} | {"item table"} <= set(below)  # fmt: skip
    assert "layer 2" in figures(tmp_path / "frellm")["spectra"]["low"]["time"]["stages"]
    tone = ["model.name=tone", "model.d_model=16", "model.d_ff=16", "model.d_kv=8", "model.n_heads=2", "model.n_layers=1",
            "model.max_len=4", "codes.size=16", "model.beams=10", "embed.encoder=builtin"]  # fmt: skip
    distrec("train", *SMALL, *tone, "out=tone", cwd=tmp_path)
    distrec("analyze", "out=tone", cwd=tmp_path)
    assert "codes' embeddings, mean" in figures(tmp_path / "tone")["items"]["below"]
    distrec("train", *SMALL, "model.name=markov", "out=markov", cwd=tmp_path)
    distrec("analyze", "out=markov", cwd=tmp_path)
    assert "does not read items" in (tmp_path / "markov/analysis/page.md").read_text()


@pytest.fixture
def subject(small, tmp_path):
    torch.manual_seed(0)
    model = SasRec(knobs.SasRec(d_model=16), small.n_items).eval()
    config = cfg.load(["score.bootstrap=0"])
    return Subject(tmp_path, config, model, small, torch.device("cpu"), tmp_path, users=80)


def test_nothing_held_out_moves_an_analysis(subject):
    """Other validation and test items, the same spectra, graph and locality."""
    data = subject.data
    item = data.item.copy()
    held = ~data.is_train()
    item[held] = (item[held] + 7) % data.n_items
    other = replace(subject, data=replace(data, item=item))
    for weights in (spectra.cooccurrences, graph_of):
        assert (weights(data) != weights(other.data)).nnz == 0
    first, second = (
        spectra.gathered(each, spectra.cooccurrences(each.data))[0]["low"].tobytes() for each in (subject, other)
    )
    assert first == second


def test_a_band_without_frequencies_counts_for_no_user(subject):
    """Histories of 8 items have 8 frequencies in 10 bands: white noise has an eighth in each that is not empty."""
    data = subject.data
    fits = data.train_end - data.start[:-1] >= spectra.LEAST
    model = SasRec(knobs.SasRec(d_model=16, max_len=spectra.LEAST), data.n_items).eval()
    eight = replace(subject, model=model, users=int(fits.sum()) * 10)
    _rows, bands = spectra.gathered(eight, spectra.cooccurrences(data))
    for values in bands.values():
        assert np.isnan(values).any(1).all()
        noise = values[-2][np.isfinite(values[-2])]
        assert len(noise) == spectra.LEAST
        assert noise == pytest.approx(1 / 8, rel=0.25)


def test_controls_move_no_held_out_item(subject):
    """Without a tie there is nothing to shuffle; ties move training interactions among themselves alone."""
    data = subject.data
    n = int(data.start[-1])
    found = controls.controls(replace(subject, data=replace(data, time=np.arange(len(data.time))))).figures
    assert found["tied"] == 0
    assert found["ties shuffled"]["ndcg@10"] == 3 * found["as they were"]["ndcg@10"]
    same = replace(data, time=np.zeros_like(data.time))
    before = same.is_train()[:n]
    for is_tied in (False, True):
        order = controls._histories(same, before, np.random.default_rng(0), is_tied)
        assert (order[~before] == np.flatnonzero(~before)).all()
        assert (order != np.arange(n)).any()
    assert controls._tied(same, before) == 1


def test_a_shuffled_history_keeps_its_items_and_its_padding(subject):
    batch = next(iter(subject.batches()))
    found = spectra.shuffle(batch, torch.Generator().manual_seed(0))
    assert torch.equal(found.is_item, batch.is_item)
    for before, after, here in zip(batch.items, found.items, batch.is_item, strict=True):
        assert sorted(before[here].tolist()) == sorted(after[here].tolist())
    assert not torch.equal(found.items, batch.items)


def test_histories_are_cut_to_their_own_places(subject):
    """The states of a user are those of the user alone, without padding."""
    (batch, *_) = subject.batches()
    for users, items, states in spectra.histories(subject.model, batch, None, torch.Generator()):
        row = int((batch.user == users[0]).nonzero()[0, 0])
        length = items.shape[1]
        assert torch.equal(items[0], batch.items[row, -length:])
        alone = subject.model.states(batch.items[row : row + 1, -length:], torch.ones(1, length, dtype=torch.bool))
        torch.testing.assert_close(states[-3, 0].float(), alone[0], atol=1e-5, rtol=1e-4)


def test_another_protocol_is_no_run_to_be_held_against(place, monkeypatch):
    monkeypatch.chdir(place)
    distrec("train", *SASREC, "seed=2", "score.mask_history=false", "train.epochs=1", "out=unmasked", cwd=place)
    with pytest.raises(ValueError, match="another protocol, history"):
        analyze.main(["out=run", "against=unmasked", "parts=locality"])


@pytest.mark.parametrize("users", [1000, 10**6])
def test_attention_is_looked_at_however_few_users_there_are(subject, users):
    assert attention(replace(subject, users=users)).figures["users"] >= min(128, subject.n_drawn)


def test_short_histories_and_one_user_are_told_not_fallen_over(subject):
    data = subject.data
    short = replace(subject, data=replace(data, train_end=np.minimum(data.train_end, data.start[:-1] + 3)))
    assert spectra.spectra(short).figures == {}
    one = np.flatnonzero(data.train_end - data.start[:-1] >= spectra.LEAST)[0]
    end = np.where(np.arange(data.n_users) == one, data.valid_end, data.train_end)
    analyze.fill(replace(subject, data=replace(data, valid_end=end)), ["spectra"])
    json.loads((subject.folder / "analysis.json").read_text(), parse_constant=pytest.fail)


def test_controls_of_data_without_times_shuffle_no_ties(subject):
    part = controls.controls(replace(subject, data=replace(subject.data, time=np.zeros_like(subject.data.time))))
    assert part.figures["tied"] is None
    assert "ties shuffled" not in part.figures
    assert "The data have no times" in part.section.blocks[0].text


def test_two_at_once_on_a_run_are_one_after_the_other(place):
    before = (place / "run/analysis/stamp.json").read_bytes()
    with store.alone(place / "run/analysis", Ranks()):
        refused = distrec("analyze", "out=run", "users=50", cwd=place, code=2)
    assert store.BUSY in refused.stderr
    assert (place / "run/analysis/stamp.json").read_bytes() == before


def test_some_users_are_drawn_and_they_alone_are_read_and_ranked(subject):
    few = replace(subject, users=5)
    users, _ = few.drawn.targets("valid")
    assert len(users) == 5
    read = torch.cat([batch.user for batch in few.batches()])
    assert sorted(read.tolist()) == users.tolist()
    whole, places = subject.data.targets("valid")
    assert dict(zip(*few.drawn.targets("valid"), strict=True)).items() <= dict(zip(whole, places, strict=True)).items()
    assert (few.drawn.is_train() == subject.data.is_train()).all()
    assert len(replace(subject, users=10**6).drawn.targets("valid")[0]) == len(whole)


def test_it_computes_in_float32_whatever_the_run_was_trained_in(subject, monkeypatch):
    """A stub of a part records the switch; TF32 would move ranks and frequencies."""
    flags = []

    def part(_):
        flags.append(torch.backends.cuda.matmul.allow_tf32)
        return Part(page.Section("stub", ()), {})

    monkeypatch.setattr(analyze, "PARTS", {"stub": part})
    subject.folder.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        analyze.fill(subject, ["stub"])
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert flags == [False]
