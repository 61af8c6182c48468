"""The benchmark of a frozen 7B, rehearsed at two layers: with a pretended GPU, and on the CPU."""

import json
import sys

import pytest
import torch
from conftest import ROOT
from pretended import Gpu


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "tests/bench"), *sys.path])
    import frozen

    return frozen


def test_it_runs_to_the_end_and_prints_what_it_has_as_it_goes(bench, capsys):
    found = bench.large(1, small=True)
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert printed[-1] == found
    assert [len(line) for line in printed] == sorted({len(line) for line in printed})
    assert set(printed[0]) == {"bf16", "seal_gb_s", "P12"}
    assert set(found) == {"bf16", "bf16_off", "bf16_mask", "nf4", "seal_gb_s", "P12", "P10_7B", "P13"}
    assert found["P12"] == found["bf16"]


def test_with_a_gpu_nothing_is_refused_and_the_places_follow_the_free_memory(bench, capsys, monkeypatch):
    used = iter([3.0, 5.0])  # GiB of two and of four sequences
    monkeypatch.setattr(bench, "four_bits", lambda decoder: None)  # bitsandbytes' kernels see no pretended GPU
    monkeypatch.setattr(bench, "peak", lambda device: next(used, 0.0))
    with Gpu(free=10 * 2**30) as gpu:
        bench.large(1, small=True)
    assert not gpu.faults
    assert "1.00 GiB a sequence of 16, 10.0 GiB free: 4 sequences" in capsys.readouterr().out
    with Gpu(free=3 * 2**30):
        used = iter([3.0, 5.0])
        assert bench.rows_that_fit(bench.tiny("cuda"), 16, "cuda", 64) == 2


def test_four_bits_are_those_of_loading_and_biases_keep_their_type(bench):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    decoder = bench.tiny("cpu")
    wanted = decoder.layers[0].self_attn.q_proj.weight.detach().clone()
    bench.four_bits(decoder)
    layer = decoder.layers[0].self_attn.q_proj
    packed, state = quantize_4bit(wanted, compress_statistics=True, quant_type="nf4", quant_storage=torch.bfloat16)
    assert torch.equal(layer.weight.data.view(torch.uint8), packed.view(torch.uint8))
    assert torch.equal(dequantize_4bit(layer.weight.data, layer.weight.quant_state), dequantize_4bit(packed, state))
    assert {p.dtype for p in decoder.parameters()} == {torch.bfloat16}
    assert not any(type(module) is torch.nn.Linear for module in decoder.modules())
