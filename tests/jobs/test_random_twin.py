"""A language model's random twin: its architecture with weights drawn anew, by which what is learnt from text is told apart."""

import json

import pytest
import torch
from commands import distrec
from decoders import CLASSES, saved

from distrec import knobs
from distrec.data import store
from distrec.engine import compatibility
from distrec.jobs.embed import encoder_digest
from distrec.jobs.parts import llm
from distrec.models.backbone import Backbone
from distrec.models.language.pretrained import open_decoder

SMALL = ["data.synthetic.users=120", "data.synthetic.items=150", "data.negatives=20", "score.bootstrap=0"]
FRELLM = [
    "model.name=frellm", "model.tfm.mode=causal", "model.max_len=8", "model.hidden=16",
    "model.sasrec.d_model=8", "model.sasrec_train.epochs=2", "model.sasrec_train.eval_epochs=1",
]  # fmt: skip


def weights(folder, dtype="float32"):
    return {name: p.detach().float() for name, p in open_decoder(folder, dtype).named_parameters()}


@pytest.mark.parametrize("kind", CLASSES)
def test_a_twin_has_the_shapes_and_the_initialiser_of_its_source_and_none_of_its_weights(kind, tmp_path):
    source = saved(tmp_path / "llm", kind, seed=7)  # itself drawn: by another seed
    before = torch.random.get_rng_state()
    folder = llm.twin(source, "float32", 0, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    ours, theirs = weights(folder), weights(source)
    spread = json.loads((source / "config.json").read_text())["initializer_range"]
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    for name, value in ours.items():
        if value.ndim > 1:
            assert not torch.equal(value, theirs[name])
            assert value.std() == pytest.approx(spread, rel=0.1)
            assert abs(value.mean()) < spread / 5
    again, other = llm.twin(source, "float32", 0, tmp_path / "again"), llm.twin(source, "float32", 1, tmp_path)
    assert encoder_digest(again) == encoder_digest(folder) != encoder_digest(other)
    assert store.verify(folder)["made_by"]["seed"] == 0


@pytest.mark.parametrize(("quantise", "tune"), compatibility.HELD)
def test_a_twin_is_held_and_sealed_in_every_way(tmp_path, quantise, tune):
    if compatibility.reason(quantise, tune):
        pytest.skip(str(compatibility.reason(quantise, tune)))
    folder = llm.twin(saved(tmp_path / "llm"), "float32", 0, tmp_path)
    config = knobs.Backbone(quantise=quantise, tune=tune)
    Backbone(config, knobs.Filter(), open_decoder(folder, quantise=quantise)).check_seal()


def test_half_as_wide_weights_are_drawn_and_kept_half_as_wide(tmp_path):
    source = saved(tmp_path / "llm")
    folder = llm.twin(source, "bfloat16", 0, tmp_path)
    size = [sum(file.stat().st_size for file in place.glob("*.safetensors")) for place in (folder, source)]
    assert size[0] < 0.6 * size[1]


def test_a_run_on_a_twin_is_trained_and_evaluated_again_and_is_not_the_loaded_one(tmp_path):
    saved(tmp_path / "llm", seed=7, width=32, layers=2)
    words = [*SMALL, *FRELLM, "model.backbone.path=llm", "train.epochs=1"]
    twin = [*words, "model.backbone.init=random"]
    distrec("train", *twin, "out=twin", cwd=tmp_path)
    distrec("evaluate", "out=twin", "score.bootstrap=0", cwd=tmp_path)
    first, again = (json.loads((tmp_path / f"twin/{name}.json").read_text()) for name in ("test", "evaluate-test"))
    assert first["full"] == again["full"]
    for other in (words, [*twin, "seed=1"]):
        refused = distrec("train", *other, "out=twin", cwd=tmp_path, code=2)
        assert "twin holds another run" in refused.stderr
    assert "backbone was" in distrec("train", *words, "out=twin", cwd=tmp_path, code=2).stderr
    made = store.read_stamp(tmp_path / "twin")["made_by"]
    assert made["backbone"] != encoder_digest(tmp_path / "llm")
    vectors = [path for path in (tmp_path / "artefacts").iterdir() if path.name.startswith("vectors-")]
    assert len(vectors) == 1  # the items' texts are read by the loaded one
    (drawn,) = (tmp_path / "artefacts").glob("llm-*")
    drawn.rename(tmp_path / "elsewhere")
    assert "give data.root=FOLDER" in distrec("evaluate", "out=twin", cwd=tmp_path, code=2).stderr


@pytest.mark.slow
def test_the_built_in_model_has_a_twin_too(tmp_path):
    words = [*SMALL, *FRELLM, "train.epochs=1", "embed.pooling=mean", "model.backbone.init=random"]
    distrec("train", *words, "out=twin", cwd=tmp_path)
    distrec("evaluate", "out=twin", "score.bootstrap=0", cwd=tmp_path)
    first, again = (json.loads((tmp_path / f"twin/{name}.json").read_text()) for name in ("test", "evaluate-test"))
    assert first["full"] == again["full"]
    assert len(list((tmp_path / "artefacts").glob("llm-*"))) == 2
