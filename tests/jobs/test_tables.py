"""Filtered tables of items against a dense filter, from a run and texts that are written down."""

from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

from distrec import knobs
from distrec.data import store, vectors
from distrec.freq import graph
from distrec.jobs.parts import tables


@pytest.fixture
def made(small, tmp_path):
    """Writes an artefact's files for a graph's settings; also SASRec's and the texts' vectors, and what SASRec saw."""
    draw = torch.Generator().manual_seed(0)
    known, told = torch.randn(small.n_items, 3, generator=draw), torch.randn(small.n_items, 4, generator=draw)
    seen = torch.randint(0, 3, (small.n_items,), generator=draw)
    (tmp_path / "run" / "item_table").mkdir(parents=True)
    place = tmp_path / "run" / "item_table" / "item_table.safetensors"
    safetensors.torch.save_file({"item_table": known, "seen": seen}, place)
    safetensors.torch.save_file({"vectors": told}, tmp_path / vectors.FILE)

    def fill(**settings):
        (tmp_path / "made").mkdir(exist_ok=True)
        tables._fill(tmp_path / "made", tmp_path / "run", tmp_path, knobs.Graph(**settings), small)
        return safetensors.torch.load_file(tmp_path / "made" / tables.FILE)

    return fill, known * (seen > 0)[:, None], told, seen


def dense(weights, alpha):
    """(I − α L) of an item with an edge, the identity of one without."""
    w = weights.toarray().astype(np.float64)
    degree = w.sum(1)
    scale = np.divide(1, np.sqrt(degree), where=degree > 0, out=np.zeros(len(w)))
    return torch.from_numpy(np.where(degree > 0, 1 - alpha, 1) * np.eye(len(w)) + alpha * scale[:, None] * w * scale).float()  # fmt: skip


def test_without_a_filter_vectors_stay_and_an_item_that_was_never_read_has_none(made):
    fill, known, told, seen = made
    found = fill(glpf_alpha=0.0)
    assert torch.equal(found["collaborative"], known)
    assert torch.equal(found["text"], told)
    assert torch.equal(found["seen"], seen)
    assert bool((seen == 0).any())


def test_the_filter_is_that_of_the_graph_of_training_whose_edges_are_kept_once(made, small, tmp_path):
    fill, known, told, _ = made
    found = fill(glpf_alpha=0.6)
    item, start = small.training()
    weights = graph.cooccurrence(item, start, small.n_items)
    for name, x in (("collaborative", known), ("text", told)):
        torch.testing.assert_close(found[name], dense(weights, 0.6) @ x, atol=1e-5, rtol=1e-4)
    edges = safetensors.torch.load_file(tmp_path / "made" / "graph.safetensors")
    row, column = weights.nonzero()
    wanted = {(i, j) for i, j in zip(row.tolist(), column.tolist(), strict=True) if i <= j}
    kept = list(zip(edges["row"].tolist(), edges["column"].tolist(), strict=True))
    assert len(kept) == len(set(kept))
    assert set(kept) == wanted


@pytest.mark.parametrize(("source", "self_loops"), [("text", True), ("items", False)])
def test_neighbours_are_by_the_vectors_that_were_asked_for(made, source, self_loops, tmp_path):
    fill, known, told, _ = made
    found = fill(glpf_alpha=0.6, source=source, top_k=4, self_loops=self_loops)
    weights = graph.neighbours(told if source == "text" else known, 4)
    if self_loops:
        weights.setdiag(1)
    torch.testing.assert_close(found["text"], dense(weights, 0.6) @ told, atol=1e-5, rtol=1e-4)
    assert not (tmp_path / "made" / "graph.safetensors").exists()


def test_a_session_ends_with_a_pause_in_hours_of_training_interactions(small):
    hour = 3_600_000_000
    user = int(np.flatnonzero(small.train_end - small.start[:-1] >= 4)[-1])  # held-out ones of others stand before it
    data = replace(small, time=np.arange(len(small.time)) * hour)
    data.time[small.start[user] + 2 : small.start[user + 1]] += 5 * hour
    item, start = data.training()
    for gap, is_cut in ((6.5, False), (5.5, True)):
        config = knobs.Graph(source="session", gap_hours=gap)
        cut = np.sort(np.r_[start, start[user] + 2]) if is_cut else start
        wanted = graph.normalise(graph.cooccurrence(item, cut, data.n_items))
        assert (tables._graph(config, data, torch.ones(1, 1), torch.ones(1, 1)) != wanted).nnz == 0


@pytest.mark.parametrize(("key", "value"), [("fitted_on", "all"), ("data", "other")])
def test_an_artefact_of_other_data_or_of_more_than_training_is_refused(small, made, tmp_path, key, value):
    fill, *_ = made
    fill(glpf_alpha=0.0)
    names = [tables.FILE]
    good = {"fitted_on": "train", "data": small.stamp}

    def copy(folder):
        for name in names:
            (folder / name).write_bytes((tmp_path / "made" / name).read_bytes())

    assert set(tables.load(store.write(tmp_path / "good", good, copy), small)) == {"collaborative", "text"}
    with pytest.raises(ValueError, match=f"is made with {key}='{value}'"):
        tables.load(store.write(tmp_path / "bad", good | {key: value}, copy), small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.name": "tiger"}, "is a run of tiger, not of model.name=sasrec"),
        ({"data": "other"}, "is about other data"),
        ({"fitted_on": "all"}, "is about other data"),
    ],
)
def test_a_run_of_another_model_or_data_is_refused(small, tmp_path, change, message):
    good = {"model.name": "sasrec", "data": small.stamp, "fitted_on": "train"}
    for name, made in (("good", good), ("bad", good | change)):
        (tmp_path / name).mkdir()
        store.write(tmp_path / name / "item_table", made, lambda folder: None)
    tables.verify_run(tmp_path / "good", small)
    with pytest.raises(ValueError, match=message):
        tables.verify_run(tmp_path / "bad", small)
    with pytest.raises(ValueError, match="no run with an item table"):
        tables.verify_run(tmp_path / "none", small)
