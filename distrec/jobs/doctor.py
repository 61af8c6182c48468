"""distrec doctor [FILE.yaml …] [section.key=value …]

Looks at what a job will meet, before its time is spent: versions, devices, memory, folders, disks, clocks, and whether
its processes can add numbers up, within a minute.  Of a GPU: its capability, free memory, driver, torch's kernels for it, NCCL, and
whether 4-bit weights (bitsandbytes) can be used.  Start it as the job will be started:

  torchrun --standalone --nproc_per_node 8 -m distrec.jobs.doctor out=runs/beauty
  srun torchrun … -m distrec.jobs.doctor data.root=/scratch/artefacts out=/scratch/runs/beauty

Exit codes: 0 nothing found · 1 something is wrong · 2 wrong usage or input.
"""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from torch.cuda import nccl

from distrec import config as cfg
from distrec.engine.launch import join
from distrec.runtime import DONE, FAILED, Ranks, run

_LIBRARIES = ("distrec", "torch", "accelerate", "deepspeed", "transformers", "peft", "bitsandbytes", "datasets")
_PROBE = 64 * 2**20  # bytes written to each folder
_SLOW = 50.0  # MB/s below which a disk is told
_SKEW = 2.0  # seconds
_GIB = 2**30
_FREE = 0.9  # share of a GPU's memory; where less is free, somebody else is on it
_AMPERE = (8, 0)  # the first capability with bfloat16 and TF32


def main(argv: Sequence[str]) -> int:
    config = cfg.load(argv)
    accelerator = join(replace(config.train, timeout_min=1.0), config.out)
    ranks = Ranks.here()
    ranks.wait()
    now = time.time()
    own = {"host": socket.gethostname(), "time": now, "versions": versions(), "device": device(accelerator.device)}
    own |= {"gpu": gpu(accelerator.device), "unseen": unseen(accelerator.device), "precision": config.train.precision}
    own["folders"] = {str(at): disk(at) for at in (config.data.root, config.out) if at} if _is_first_here() else {}
    own["sum"] = add_up(ranks, accelerator.device)
    reports = ranks.gather(own)
    found = list(problems(reports, ranks.size))
    if ranks.is_main:
        for report in reports:
            print(line(report))
        print("\n".join(f"WRONG: {each}" for each in found) or "nothing found")
    return FAILED if found else DONE


def versions() -> dict[str, str]:
    """Of Python and of what distrec stands on."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        found["nccl"] = ".".join(str(number) for number in nccl.version())
    return found


def device(at: torch.device) -> str:
    """The device in words."""
    if at.type == "cuda":
        return torch.cuda.get_device_name(at)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"CPU, {os.cpu_count()} cores, {memory:.0f} GiB"


def gpu(at: torch.device) -> dict[str, Any]:
    """Facts about this process's GPU; empty without one.

    Units: `free` and `total` GiB; versions as (major, minor): `capability` of the card, `driver` the newest CUDA that the
    driver runs, `built` the CUDA of torch.  `kernels`: what torch was compiled for; `nf4`: why 4-bit weights cannot be
    used, None where they can, or where another process of this machine looks.
    """
    if at.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(at)
    return {
        "free": free / _GIB,
        "total": total / _GIB,
        "capability": torch.cuda.get_device_capability(at),
        "driver": driver(),
        "built": _version(torch.version.cuda),
        "kernels": torch.cuda.get_arch_list(),
        "nf4": four_bits() if _is_first_here() else None,
    }


def driver() -> tuple[int, int] | None:
    """The newest CUDA (major, minor) that the driver of this machine runs; None without a driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(number))
    return number.value // 1000, number.value % 1000 // 10


def four_bits() -> str | None:
    """Why bitsandbytes' library for this CUDA does not load; None where it does, or is not installed.

    In a process of its own: a library that does not load may end it.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return None
    code = "from bitsandbytes.cextension import lib; assert lib.compiled_with_cuda, 'no library for this CUDA'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    said = done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"]
    return said[-1] if done.returncode else None


def unseen(at: torch.device) -> str | None:
    """Why torch sees no GPU where there is one, or where the job requested some; None where nothing is amiss."""
    if at.type == "cuda" or parse_flag_from_env("ACCELERATE_USE_CPU") or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return None
    requested = os.environ.get("SLURM_GPUS_ON_NODE", "0")
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return f"the job requested {requested} GPUs on this node, which shows none" if requested != "0" else None
    newest, built = driver(), _version(torch.version.cuda)
    if built is None:
        return f"there is a GPU, but torch {torch.__version__} is built without CUDA: install torch for CUDA"
    if newest is not None and built[0] > newest[0]:
        return f"torch is built for CUDA {_dotted(built)}, the driver runs {_dotted(newest)} at most: update the driver, or install torch for CUDA {newest[0]}"  # fmt: skip
    return f"there is a GPU that torch does not see (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')})"


def _version(text: str | None) -> tuple[int, int] | None:
    """(major, minor) of "13.0"."""
    return None if text is None else (int(text.split(".")[0]), int(text.split(".")[1]))


def _dotted(version: Sequence[int]) -> str:
    return ".".join(str(number) for number in version)


def disk(folder: Path) -> dict[str, Any]:
    """MB/s of a file that is written and synced there; or why it cannot be."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        with probe.open("wb") as file:
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())
        return {"mb_s": _PROBE / 1e6 / (time.perf_counter() - started)}
    except OSError as error:
        return {"error": error.strerror or str(error)}
    finally:
        with contextlib.suppress(OSError):  # it is not there, as was told
            probe.unlink()


def add_up(ranks: Ranks, at: torch.device) -> dict[str, Any]:
    """Whether a sum over processes is right, and the seconds that 16 MiB take; or how it failed."""
    values = torch.full((2**22,), float(ranks.rank + 1), device=at)
    try:
        ranks.sum_(torch.zeros(1, device=at))  # what is set up at first use is not counted
        started = time.perf_counter()
        ranks.sum_(values)
        right = bool((values == ranks.size * (ranks.size + 1) / 2).all())
        return {"right": right, "seconds": time.perf_counter() - started}
    except RuntimeError as error:  # a time-out, a lost connection
        return {"right": False, "error": str(error).splitlines()[0]}


def problems(reports: Sequence[Mapping[str, Any]], size: int) -> Iterator[str]:
    """What is wrong, each with its host."""
    first = reports[0]
    for rank, report in enumerate(reports):
        who = f"{report['host']} (rank {rank})"
        for name in sorted(first["versions"].keys() | report["versions"].keys()):
            one, two = first["versions"].get(name), report["versions"].get(name)
            if one != two:
                yield f"{who}: {name} {two}, where {first['host']} has {one}"
        skew = report["time"] - first["time"]
        if abs(skew) > _SKEW:
            yield f"{who}: its clock differs by {skew:+.1f} s from {first['host']}'s"
        for fault in (report["unseen"], *(gpu_problems(report["gpu"], report["precision"]) if report["gpu"] else ())):
            if fault:
                yield f"{who}: {fault}"
        for folder, found in report["folders"].items():
            if "error" in found:
                yield f"{who}: {folder} cannot be written to: {found['error']}"
            elif found["mb_s"] < _SLOW:
                yield f"{who}: {folder} takes {found['mb_s']:.0f} MB/s only"
        if size > 1 and not report["sum"]["right"]:
            yield f"{who}: the sum over {size} processes is wrong {report['sum'].get('error', '')}".rstrip()


def gpu_problems(facts: Mapping[str, Any], precision: str) -> Iterator[str]:
    """What is wrong with a GPU (facts of gpu()) for training in this train.precision."""
    card = f"capability {_dotted(facts['capability'])}"
    if precision != "no" and facts["capability"] < _AMPERE:
        yield f"{card} has neither bfloat16 nor TF32 (from {_dotted(_AMPERE)}): train.precision=no"
    if facts["kernels"] and not any(_runs(kernel, *facts["capability"]) for kernel in facts["kernels"]):
        yield f"torch holds no kernels for {card} (it has {' '.join(facts['kernels'])}): install another build"
    if facts["driver"] and facts["built"] and facts["built"][0] > facts["driver"][0]:
        yield f"torch is built for CUDA {_dotted(facts['built'])}, the driver runs {_dotted(facts['driver'])} at most"
    if facts["free"] < _FREE * facts["total"]:
        yield f"{facts['free']:.1f} of {facts['total']:.1f} GiB are free: another process is on this GPU (nvidia-smi)"
    if facts["nf4"]:
        yield f"model.backbone.quantise=nf4 cannot be used, bitsandbytes says: {facts['nf4']}"


def _runs(kernel: str, major: int, minor: int) -> bool:
    """Whether a card runs kernels of this name: sm_XY on the same major version, compute_XY (compiled at start) on any later."""
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", kernel)
    if found is None:
        return False
    own = int(found[2]), int(found[3])
    return own <= (major, minor) and (found[1] == "compute" or own[0] == major)


def line(report: Mapping[str, Any]) -> str:
    """A process in one line."""
    facts, card = report["gpu"], []
    if facts:
        runs = f"driver for CUDA {_dotted(facts['driver'])}" if facts["driver"] else "no driver"
        card = [
            f"{facts['free']:.1f} of {facts['total']:.1f} GiB free, capability {_dotted(facts['capability'])}, {runs}"
        ]
    disks = [f"{at} {found.get('error') or format(found['mb_s'], '.0f') + ' MB/s'}" for at, found in report["folders"].items()]  # fmt: skip
    told = " ".join(f"{name} {version}" for name, version in report["versions"].items())
    seconds = report["sum"].get("seconds")
    summed = f"sum of 16 MiB {1000 * seconds:.0f} ms" if seconds is not None else "no sum"
    return "; ".join([report["host"], report["device"], *card, *disks, summed, told])


def _is_first_here() -> bool:
    """Of the processes on this machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


if __name__ == "__main__":
    run(main, __doc__)
