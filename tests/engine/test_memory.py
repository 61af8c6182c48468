"""A device without memory left: one line with what to lower, by where it happened; the exit code is 1."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from decoders import saved
from loops import never, trainer
from pretended import Gpu
from transformers import AutoModel

from distrec import config as cfg
from distrec import knobs
from distrec.engine import memory
from distrec.engine.evaluation import scoring
from distrec.jobs import embed
from distrec.jobs.codes import fit
from distrec.jobs.parts import assemble
from distrec.models.language.pretrained import open_decoder
from distrec.runtime import FAILED, Ranks

WORDS = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.1 GiB of which …"


def full(*_, **__):
    raise torch.OutOfMemoryError(WORDS)


def told(capsys, work):
    """The line that a command leaves whose main does this."""
    assert memory.explained(lambda argv: work())([]) == FAILED
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.splitlines()[-1]


def test_training_names_the_tokens_of_a_pass(small, tmp_path, capsys, monkeypatch):
    one = trainer(small, tmp_path)
    monkeypatch.setattr(one.model, "forward", full)
    said = told(capsys, lambda: one.fit(never))
    assert said.startswith("error: training ran out of memory for 2.50 GiB more. Lower train.micro_tokens")
    assert "model.backbone.checkpointing=true" in said
    assert "model.logits_mib" in said


def test_ranking_names_the_users_of_a_block_even_while_a_model_trains(small, tmp_path, capsys, monkeypatch):
    one = trainer(small, tmp_path)
    monkeypatch.setattr(scoring.batches, "collate", full)
    said = told(capsys, lambda: one._rank_validation(never))
    assert said.startswith("error: ranking ran out of memory")
    assert "score.batch_users" in said


def test_embedding_names_its_batch(small, tmp_path, capsys, monkeypatch):
    class Encoder:
        encode = staticmethod(full)

    monkeypatch.setattr(embed, "open_encoder", lambda *_: Encoder())
    config = cfg.load([f"data.root={tmp_path}", "embed.encoder=builtin"])
    said = told(capsys, lambda: embed.embed(config.embed, config.data, small, Ranks(), never))
    assert "Lower embed.batch" in said


def test_quantizing_names_processes_and_dimensions(table, capsys, monkeypatch):
    monkeypatch.setattr(fit, "share", full)
    said = told(capsys, lambda: fit.rows_of(table, Ranks(), torch.device("cpu")))
    assert said.startswith("error: quantizing ran out of memory")
    assert "codes.pca" in said


def test_loading_names_the_type_of_the_weights(small, capsys, monkeypatch):
    monkeypatch.setattr(assemble, "build", full)
    said = told(capsys, lambda: assemble.assemble(cfg.load([]), small, assemble.Parts({}, {}), torch.device("cpu")))
    assert said.startswith("error: loading the model ran out of memory")
    assert "model.backbone.quantise=nf4" in said


def test_a_device_that_is_full_is_no_wrong_folder(tmp_path, monkeypatch):
    """Fails: where loading turns every error into one about the files."""
    monkeypatch.setattr(AutoModel, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError):
        open_decoder(saved(tmp_path))
    monkeypatch.setattr(embed, "SentenceEncoder", full)
    with pytest.raises(torch.OutOfMemoryError):
        embed.open_encoder(tmp_path / "none", knobs.Embed())


def test_elsewhere_the_line_names_the_plan(capsys):
    assert told(capsys, full).endswith("distrec plan says what a run takes.")


def test_the_device_is_named_with_what_is_free(capsys):
    with Gpu(free=2**29):
        said = told(capsys, full)
    assert "on NVIDIA H100 80GB HBM3 (cuda:0): 0.5 of 80.0 GiB are free, tensors of this process hold 0.0 GiB. " in said


def test_every_rank_says_it_of_its_own_device(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert told(capsys, full).startswith("error on rank 3: ")


def test_other_errors_and_answers_pass():
    assert memory.explained(lambda argv: len(argv))(["a", "b"]) == 2


def test_only_a_full_device_is_explained():
    def broken(argv):
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side"):
        memory.explained(broken)([])


def test_the_traceback_is_there_for_who_asks(capsys, monkeypatch):
    monkeypatch.setenv("DISTREC_TRACEBACK", "1")
    memory.explained(full)([])
    assert "Traceback" in capsys.readouterr().err


def test_a_command_ends_with_one_line_and_code_1(tmp_path):
    driver = (
        "import runpy, sys, torch; from distrec import config\n"
        "def full(*_): raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.50 GiB.')\n"
        "config.load = full; sys.argv = ['x']; runpy.run_module('distrec.train', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", driver], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "ran out of memory for 2.50 GiB more" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "job", ["train", *(f"jobs/{name}" for name in ("analyze", "embed", "evaluate", "filter", "quantize", "recommend"))]
)
def test_every_command_that_fills_a_device_explains_it(job):
    assert (ROOT / "distrec" / f"{job}.py").read_text().endswith("    run(memory.explained(main), __doc__)\n")
