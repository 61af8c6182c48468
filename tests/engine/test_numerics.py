"""The switches of CUDA's products: every one as the config has it, whatever was set before, and in a run's provenance."""

import os

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from pretended import Gpu

from distrec import knobs
from distrec.engine import numerics
from distrec.engine.launch import join

OFF = {"tf32": False, "cudnn_tf32": False, "bf16_reduced_sums": False, "cudnn_attention": False, "deterministic": False}


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    torch.use_deterministic_algorithms(False)
    numerics.set_up("no", False)


def joined(**train):
    PartialState._reset_state()
    AcceleratorState._reset_state(True)
    return join(knobs.Train(**train))


def test_nothing_rounds_or_reorders_that_was_not_asked_for():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    torch.backends.cuda.enable_cudnn_sdp(True)
    assert joined(precision="bf16").mixed_precision == "bf16"
    assert numerics.facts() == OFF
    assert not torch.backends.cudnn.benchmark


def test_tf32_is_used_where_the_config_says_so(capsys):
    assert joined(precision="tf32").mixed_precision == "no"
    assert numerics.facts() == {**OFF, "tf32": True, "cudnn_tf32": True}
    assert "train.precision=tf32 changes nothing here" in capsys.readouterr().err
    joined()
    assert numerics.facts() == OFF
    assert not capsys.readouterr().err


def test_one_order_of_addition_is_for_gpus():
    """A processor adds in one order anyway; there the switch would only cost time."""
    numerics.set_up("no", deterministic=True)
    assert not numerics.facts()["deterministic"]
    with Gpu():
        numerics.set_up("no", deterministic=True)
        assert numerics.facts()["deterministic"]
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        numerics.set_up("no", deterministic=False)
    assert numerics.facts() == OFF


def test_a_launch_sends_no_buffers_at_every_step_and_compiles_for_every_shape(monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "aot_eager")
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_DYNAMIC", "False")
    accelerator = joined()
    assert accelerator.ddp_handler.broadcast_buffers is False
    assert accelerator.state.dynamo_plugin.dynamic is True
