"""What a job will meet, looked at before."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import distrec
from pretended import Gpu

from distrec.jobs import doctor


def report(**changes):
    usual = {
        "host": "a", "time": 100.0, "versions": {"torch": "2.13"}, "device": "CPU",
        "folders": {"runs": {"mb_s": 500.0}}, "sum": {"right": True, "seconds": 0.1},
        "gpu": {}, "unseen": None, "precision": "bf16",
    }  # fmt: skip
    return usual | changes


def test_nothing_is_found_where_all_are_alike():
    assert not list(doctor.problems([report(), report(host="b", time=100.5)], 2))


def test_each_fault_is_named_with_its_host():
    wrong = {
        "b (rank 1): torch 2.12, where a has 2.13": {"versions": {"torch": "2.12"}},
        "b (rank 1): its clock differs by -60.0 s from a's": {"time": 40.0},
        "b (rank 1): runs cannot be written to: Read-only file system": {"folders": {"runs": {"error": "Read-only file system"}}},
        "b (rank 1): runs takes 3 MB/s only": {"folders": {"runs": {"mb_s": 3.0}}},
        "b (rank 1): the sum over 2 processes is wrong timed out": {"sum": {"right": False, "error": "timed out"}},
    }  # fmt: skip
    for told, changes in wrong.items():
        assert list(doctor.problems([report(), report(host="b", **changes)], 2)) == [told]


def card(**changes):
    usual = {
        "free": 78.0, "total": 79.0, "capability": (9, 0), "driver": (13, 0), "built": (12, 8),
        "kernels": ["sm_80", "sm_90", "compute_90"], "nf4": None,
    }  # fmt: skip
    return usual | changes


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"free": 72.0}, None),
        ({"free": 71.0}, "71.0 of 79.0 GiB are free: another process is on this GPU (nvidia-smi)"),
        ({"capability": (7, 0), "kernels": ["sm_70"]}, "capability 7.0 has neither bfloat16 nor TF32 (from 8.0): train.precision=no"),
        ({"capability": (8, 9)}, None),  # by sm_80
        ({"capability": (12, 0)}, None),  # by compute_90
        ({"capability": (8, 0), "kernels": ["sm_86", "sm_90a"]}, "torch holds no kernels for capability 8.0 (it has sm_86 sm_90a): install another build"),
        ({"capability": (12, 0), "kernels": ["sm_90"]}, "torch holds no kernels for capability 12.0 (it has sm_90): install another build"),
        ({"capability": (12, 0), "kernels": ["sm_120"]}, None),
        ({"driver": (12, 4)}, None),  # a minor version is no matter
        ({"driver": (12, 4), "built": (13, 0)}, "torch is built for CUDA 13.0, the driver runs 12.4 at most"),
        ({"nf4": "no library"}, "model.backbone.quantise=nf4 cannot be used, bitsandbytes says: no library"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_gpu_is_named(changes, problem):
    found = list(doctor.problems([report(gpu=card(**changes))], 1))
    assert found == ([f"a (rank 0): {problem}"] if problem else [])


def test_an_old_card_will_do_in_float32():
    assert not list(doctor.gpu_problems(card(capability=(7, 0), kernels=["sm_70"]), "no"))


def test_a_gpu_is_told_in_its_line(monkeypatch):
    monkeypatch.setattr(doctor, "driver", lambda: (12, 4))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 3))
    monkeypatch.setattr(doctor, "four_bits", lambda: "broken")
    with Gpu(free=30 * 2**30):
        facts = doctor.gpu(torch.device("cuda", 0))
        assert doctor.versions()["nccl"] == "2.27.3"
        told = doctor.line(report(gpu=facts, device=doctor.device(torch.device("cuda", 0))))
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert doctor.gpu(torch.device("cuda", 0))["nf4"] is None  # one process a machine looks
    assert facts == card(free=30.0, total=80.0, driver=(12, 4), kernels=["sm_90"], nf4="broken")
    assert "NVIDIA H100 80GB HBM3; 30.0 of 80.0 GiB free, capability 9.0, driver for CUDA 12.4; " in told


@pytest.mark.parametrize(
    ("cards", "built", "env", "why"),
    [
        (0, None, {}, None),
        (0, "13.0", {"SLURM_GPUS_ON_NODE": "8"}, "the job requested 8 GPUs on this node, which shows none"),
        (8, None, {}, f"there is a GPU, but torch {torch.__version__} is built without CUDA: install torch for CUDA"),
        (8, "13.0", {}, "torch is built for CUDA 13.0, the driver runs 12.4 at most: update the driver, or install torch for CUDA 12"),
        (8, "12.8", {"CUDA_VISIBLE_DEVICES": "9"}, "there is a GPU that torch does not see (CUDA_VISIBLE_DEVICES=9)"),
        (8, "13.0", {"CUDA_VISIBLE_DEVICES": ""}, None),
        (8, None, {"ACCELERATE_USE_CPU": "true"}, None),
    ],
)  # fmt: skip
def test_a_gpu_that_torch_does_not_see_is_explained(monkeypatch, cards, built, env, why):
    for key in ("SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(key, raising=False)
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(doctor, "driver", lambda: (12, 4))
    monkeypatch.setattr(torch.version, "cuda", built)
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(range(cards)) if str(self) == "/dev" else glob(self, pattern))  # fmt: skip
    assert doctor.unseen(torch.device("cpu")) == why
    assert doctor.unseen(torch.device("cuda", 0)) is None
    assert list(doctor.problems([report(unseen=why)], 1)) == ([f"a (rank 0): {why}"] if why else [])


def test_the_drivers_version_is_read_from_its_library(monkeypatch):
    def library(name):
        assert name == "libcuda.so.1"
        return SimpleNamespace(cuDriverGetVersion=lambda at: setattr(at._obj, "value", 12040))

    monkeypatch.setattr(doctor.ctypes, "CDLL", library)
    assert doctor.driver() == (12, 4)
    monkeypatch.undo()
    monkeypatch.setattr(doctor.ctypes, "CDLL", lambda _: os.open("/nowhere/at/all", os.O_RDONLY))
    assert doctor.driver() is None


@pytest.mark.parametrize(
    ("code", "said", "why"),
    [(0, "a warning", None), (1, "Traceback\nAssertionError: no library\n", "AssertionError: no library"), (-11, "", "ended with code -11")],
)  # fmt: skip
def test_bitsandbytes_is_tried_in_a_process_of_its_own(monkeypatch, code, said, why):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=code, stderr=said))
    assert doctor.four_bits() == why
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor.four_bits() is None  # it is not installed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there its library loads")
def test_bitsandbytes_without_a_gpu_has_no_library_for_cuda():
    pytest.importorskip("bitsandbytes")
    assert doctor.four_bits() == "AssertionError: no library for this CUDA"
    assert "bitsandbytes" not in sys.modules or sys.modules["bitsandbytes"]


def test_a_machine_is_told_and_a_folder_that_cannot_be_written_to(tmp_path):
    words = [f"data.root={tmp_path}/art", f"out={tmp_path}/run"]
    told = distrec("doctor", *words, cwd=tmp_path).stdout
    assert "torch 2." in told
    assert "nothing found" in told or "MB/s only" in told
    (tmp_path / "file").write_text("")
    wrong = distrec("doctor", f"data.root={tmp_path}/file/art", cwd=tmp_path, code=1).stdout
    assert "file/art cannot be written to: Not a directory" in wrong
    assert not list(tmp_path.rglob(".probe*"))


def test_two_processes_add_up(tmp_path):
    torchrun = Path(sys.executable).with_name("torchrun")
    words = ["--standalone", "--nproc_per_node=2", "-m", "distrec.jobs.doctor", f"data.root={tmp_path}"]
    done = subprocess.run([torchrun, *words], capture_output=True, text=True, check=False, env={"PATH": "", "ACCELERATE_USE_CPU": "true"})  # fmt: skip
    assert done.returncode == 0 or "MB/s only" in done.stdout, done.stderr[-2000:]
    assert done.stdout.count("sum of 16 MiB") == 2
