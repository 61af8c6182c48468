"""FreLLM4Rec from a config to recommendations; what it is built on; what is refused before a model is loaded."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from commands import distrec
from conftest import ROOT
from decoders import saved

from distrec import knobs
from distrec.data import store
from distrec.jobs.parts import llm, tables

SMALL = ["data.synthetic.users=120", "data.synthetic.items=150", "data.negatives=20", "score.bootstrap=0"]
FRELLM = [
    "model.name=frellm", "model.tfm.mode=causal", "model.max_len=8", "model.hidden=16", "train.epochs=2",
    "model.sasrec.d_model=8", "model.sasrec_train.epochs=2", "model.sasrec_train.eval_epochs=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a language model and a finished run on it."""
    folder = tmp_path_factory.mktemp("frellm")
    saved(folder / "llm", width=32, layers=2)
    distrec("train", *SMALL, *FRELLM, "model.backbone.path=llm", "out=run", cwd=folder)
    return folder


def test_one_command_makes_whatever_is_missing(place):
    report = json.loads((place / "run/test.json").read_text())
    assert 0 < report["full"]["hr@10"] < 1
    assert 0 < report["sampled_1_20"]["hr@10"] <= 1
    made = {path.name.split("-")[0] for path in (place / "artefacts").iterdir() if path.is_dir()}
    assert made >= {"prepared", "vectors", "sasrec", "tables"}
    stamp = store.read_stamp(place / "run")["made_by"]
    assert {"tables", "backbone", "data"} <= stamp.keys()
    checkpoint = max((place / "run/checkpoints").glob("step-*"))
    kept = safetensors.torch.load_file(checkpoint / "model.safetensors")
    assert not [name for name in kept if "decoder" in name]  # what is frozen is not written again


def test_a_finished_run_is_read_again_and_recommends(place):
    distrec("evaluate", "out=run", "score.bootstrap=0", cwd=place)
    again = json.loads((place / "run/evaluate-test.json").read_text())
    assert again["full"] == json.loads((place / "run/test.json").read_text())["full"]
    distrec("recommend", "out=run", "k=3", cwd=place)
    assert len((place / "run/recommendations.jsonl").read_text().splitlines()) == 120


def test_another_backbone_is_not_taken_for_the_run_s(place, tmp_path):
    other = saved(tmp_path / "llm", seed=1, width=32, layers=2)
    words = [*SMALL, *FRELLM, f"model.backbone.path={other}", "out=run"]
    before = {path.name for path in (place / "artefacts").iterdir()}
    refused = distrec("train", *words, cwd=place, code=2)
    assert "run holds another run (backbone was" in refused.stderr
    assert {path.name for path in (place / "artefacts").iterdir()} == before
    refused = distrec("train", *words, "embed.pooling=mean", cwd=place, code=2)
    assert "run holds another run (embed.pooling was" in refused.stderr
    (place / "llm/README.md").write_text("what is not read does not count")
    shutil.move(place / "llm", place / "elsewhere")
    refused = distrec("evaluate", "out=run", cwd=place, code=2)
    assert "give model.backbone.path=FOLDER" in refused.stderr
    distrec("evaluate", "out=run", "model.backbone.path=elsewhere", "score.bootstrap=0", cwd=place)
    shutil.move(place / "elsewhere", place / "llm")


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("model.tfm.cutoff=0.5", "run holds another run (model.tfm.cutoff was 0.3, now 0.5"),
        ("model.backbone.tune=lora", "run holds another run (model.backbone.tune was 'frozen', now 'lora'"),
        ("data.synthetic.items=140", "data.synthetic.items was 150, now 140 since the run in run: "),
    ],
)
def test_another_filter_training_or_catalogue_is_not_taken_for_the_run_s(place, word, named):
    refused = distrec("train", *SMALL, *FRELLM, "model.backbone.path=llm", word, "out=run", cwd=place, code=2)
    assert refused.stderr.splitlines()[-1].startswith(f"error: {named}")


def test_a_sasrec_of_ones_own_is_taken_and_one_of_other_items_refused(place):
    run = next((place / "artefacts").glob("sasrec-*"))
    words = [*SMALL, *FRELLM, "model.backbone.path=llm", "train.epochs=1", f"model.items={run}"]
    distrec("train", *words, "out=own", cwd=place)
    refused = distrec("train", *words, "data.synthetic.items=140", "out=other", cwd=place, code=2)
    assert refused.stderr.splitlines()[-1].endswith("train it on them, or leave model.items out")
    assert "embedding" not in refused.stderr
    refused = distrec("train", *words[:-1], "model.items=nowhere", "out=other", cwd=place, code=2)
    assert "no run with an item table" in refused.stderr
    refused = distrec("train", *words[:-1], "model.items=run", "out=other", cwd=place, code=2)
    assert "model.items=run is a run of frellm, not of model.name=sasrec" in refused.stderr


def test_tables_are_checked_wherever_they_are_read(place):
    folder = next((place / "artefacts").glob("tables-*"))
    file = folder / "tables.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 128]))
    for job in ("evaluate", "recommend"):
        refused = distrec(job, "out=run", cwd=place, code=2)
        assert "tables.safetensors is not what was written" in refused.stderr
    file.write_bytes(whole)


@pytest.mark.parametrize("wrong", [{"fitted_on": "test"}, {"data": "of others"}])
def test_tables_of_other_data_or_of_the_test_split_are_refused(small, tmp_path, wrong):
    made = {"fitted_on": "train", "data": small.stamp, **wrong}
    folder = store.write(tmp_path / "tables", made, lambda at: (at / tables.FILE).write_bytes(b""))
    with pytest.raises(ValueError, match=f"made with {next(iter(wrong))}="):
        tables.load(folder, small)


def test_nothing_to_learn_from_is_told_before_anything_is_made(tmp_path):
    (tmp_path / "log.csv").write_text("user,item,time\n" + "".join(f"u,{item},{item}\n" for item in range(3)))
    words = ["data.source=table", "data.path=log.csv", "data.negatives=0", "model.name=frellm", "out=run"]
    refused = distrec("train", *words, cwd=tmp_path, code=2)
    assert "there is nothing to learn from" in refused.stderr
    assert [path.name.split("-")[0] for path in (tmp_path / "artefacts").iterdir() if path.is_dir()] == ["prepared"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.tfm.cutoff=1.5"], "model.tfm.cutoff"),
        (["model.tfm.cutoff=0"], "model.tfm.cutoff"),
        (["model.tfm.order=0"], "model.tfm.order"),
        (["model.tfm.mode=global", "model.tfm.boundary=paper", "model.tfm.cutoff=.05"], "takes none below 0.1"),
        (["model.sasrec.n_heads=3"], "is not a multiple of model.sasrec.n_heads 3"),
        (["model.backbone.path=./none"], "there is no such folder"),
        (["model.items=missing"], "no run with an item table"),
        (["model.tfm.mode=global", "train.samples=sequences"], "would see its targets"),
        (["model.backbone.path=nowhere"], "neither a folder nor to be had from the hub"),
        (["model.backbone.path=empty"], "no language model in this folder"),
        (["model.backbone.quantise=nf4", "model.backbone.tune=full"], "cannot be trained whole"),
        (["model.backbone.dtype=bfloat16", "model.backbone.tune=full"], "what is trained stays in float32"),
        (
            ["model.backbone.tune=lora", "model.backbone.lora_modules=[q_proj,nothing]"],
            "lora_modules=nothing: this model has",
        ),
        (["model.max_len=300"], "model.max_len=300: this language model has 256 places"),
        (["model.graph.source=text", "model.graph.window=3"], "do nothing with model.graph.source=text"),
    ],
)
def test_wrong_settings_are_one_clear_line_before_anything_is_made(place, words, message):
    (place / "empty").mkdir(exist_ok=True)
    before = {path.name for path in (place / "artefacts").iterdir()}
    refused = distrec("train", *SMALL, *FRELLM, "model.backbone.path=llm", *words, "out=none", cwd=place, code=2)
    assert message in refused.stderr.splitlines()[-1]
    assert not (place / "none").exists()
    assert {path.name for path in (place / "artefacts").iterdir()} == before


SOURCES = [{}, {"window": 2, "weighting": "lag"}, {"source": "session", "weighting": "count"}, {"top_k": 3}, {"self_loops": False}, {"source": "text"}, {"source": "items", "top_k": 4}]  # fmt: skip


@pytest.mark.parametrize("settings", SOURCES, ids=str)
def test_no_validation_or_test_interaction_reaches_a_graph(small, settings):
    config = knobs.Graph(**settings)
    known, told = torch.randn(small.n_items, 6), torch.randn(small.n_items, 9)
    graph = tables._graph(config, small, known, told)
    later = ~small.is_train()
    assert later.sum() > 1.9 * small.n_users
    item, time = np.array(small.item), np.array(small.time)
    item[later] = np.random.default_rng(0).integers(small.n_items, size=later.sum())
    time[later] += 10**12
    again = tables._graph(config, replace(small, item=item, time=time), known, told)
    assert (graph != again).nnz == 0
    item[~later] = item[~later][::-1]
    if config.source in ("interactions", "session"):
        assert (graph != tables._graph(config, replace(small, item=item), known, told)).nnz > 0


def test_what_no_training_window_held_has_no_vector(small, tmp_path):
    run, text = tmp_path / "run/item_table", tmp_path / "text"
    run.mkdir(parents=True)
    text.mkdir()
    table = {"item_table": torch.ones(small.n_items, 4), "seen": torch.arange(small.n_items).clamp(max=1)}
    safetensors.torch.save_file(table, run / "item_table.safetensors")
    safetensors.torch.save_file({"vectors": torch.ones(small.n_items, 3)}, text / "vectors.safetensors")
    tables._fill(tmp_path, tmp_path / "run", text, knobs.Graph(glpf_alpha=0), small)
    found = safetensors.torch.load_file(tmp_path / tables.FILE)
    assert found["collaborative"].sum(1).tolist() == [0, *[4.0] * (small.n_items - 1)]
    assert torch.equal(found["text"], torch.ones(small.n_items, 3))
    tables._fill(tmp_path, tmp_path / "run", text, knobs.Graph(), small)
    assert not torch.equal(safetensors.torch.load_file(tmp_path / tables.FILE)["collaborative"], found["collaborative"])


@pytest.mark.slow
def test_the_built_in_backbone_walks_the_same_way(small, tmp_path):
    folder = llm.locate(llm.SMALL, None, tmp_path, small)
    assert llm.is_decoder(folder)
    assert llm.locate(llm.SMALL, None, tmp_path, small) == folder
    distrec("train", *SMALL, *FRELLM, f"data.root={tmp_path}", "embed.pooling=mean", "out=run", cwd=tmp_path)
    distrec("train", *SMALL, *FRELLM, f"data.root={tmp_path}", "model.backbone.quantise=nf4", "out=four", cwd=tmp_path)


def test_two_processes_end_as_one_does(place):
    words = [*SMALL, *FRELLM, "model.backbone.path=llm", "data.root=two-artefacts", "out=two"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(ROOT / "distrec/train.py"), *words], cwd=place, env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    distrec("evaluate", "out=two", "score.bootstrap=0", cwd=place)
    again = json.loads((place / "two/evaluate-test.json").read_text())
    assert again["full"] == json.loads((place / "two/test.json").read_text())["full"]


def test_an_audit_reads_the_tables_and_finds_no_leak(place):
    told = distrec("audit", *SMALL, "out=run", cwd=place)
    assert "LEAK" not in told.stdout
    assert "tables-" in told.stdout
