"""Benchmarks with --cuda, rehearsed at small size on the pretended GPU, so that the first real one measures them."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from pretended import Gpu

BENCH = Path(__file__).parent / "bench"
RUNS = {
    "ranks": ["1", "--users", "40", "--items", "300"],
    "beam": ["--users", "2", "--rounds", "1", "--items", "60", "--largest", "60"],
    "tone": ["--users", "2", "--rounds", "1", "--items", "60"],
}


@pytest.mark.parametrize("name", RUNS)
def test_it_runs_on_a_gpu_and_names_it(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCH))
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    with Gpu() as gpu:
        bench.main([*RUNS[name], "--cuda"])
        device = torch.cuda.get_device_name()
    assert not gpu.faults
    lines = capsys.readouterr().out.splitlines()
    assert device in lines[0]
    assert json.loads(lines[-1])["device"] == device
