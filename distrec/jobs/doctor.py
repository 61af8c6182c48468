"""distrec doctor [FILE.yaml …] [section.key=value …]

Looks at what a job will meet, before its time is spent: versions, devices, memory, folders, disks, clocks, and whether
its processes can add numbers up, within a minute.  Start it as the job will be started:

  torchrun --standalone --nproc_per_node 8 -m distrec.jobs.doctor out=runs/beauty
  srun torchrun … -m distrec.jobs.doctor data.root=/scratch/artefacts out=/scratch/runs/beauty

Exit codes: 0 nothing found · 1 something is wrong · 2 wrong usage or input.
"""

import contextlib
import importlib.metadata
import os
import platform
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from distrec import config as cfg
from distrec.engine.launch import join
from distrec.runtime import DONE, FAILED, Ranks, run

_LIBRARIES = ("distrec", "torch", "accelerate", "deepspeed", "transformers", "peft", "bitsandbytes", "datasets")
_PROBE = 64 * 2**20  # bytes written to each folder
_SLOW = 50.0  # MB/s below which a disk is told
_SKEW = 2.0  # seconds


def main(argv: Sequence[str]) -> int:
    config = cfg.load(argv)
    accelerator = join(replace(config.train, timeout_min=1.0), config.out)
    ranks = Ranks.here()
    ranks.wait()
    now = time.time()
    own = {"host": socket.gethostname(), "time": now, "versions": versions(), "device": device(accelerator.device)}
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
    return found


def device(at: torch.device) -> str:
    if at.type == "cuda":
        facts = torch.cuda.get_device_properties(at)
        return f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"CPU, {os.cpu_count()} cores, {memory:.0f} GiB"


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
        for folder, found in report["folders"].items():
            if "error" in found:
                yield f"{who}: {folder} cannot be written to: {found['error']}"
            elif found["mb_s"] < _SLOW:
                yield f"{who}: {folder} takes {found['mb_s']:.0f} MB/s only"
        if size > 1 and not report["sum"]["right"]:
            yield f"{who}: the sum over {size} processes is wrong {report['sum'].get('error', '')}".rstrip()


def line(report: Mapping[str, Any]) -> str:
    """A process in one line."""
    disks = [f"{at} {found.get('error') or format(found['mb_s'], '.0f') + ' MB/s'}" for at, found in report["folders"].items()]  # fmt: skip
    told = " ".join(f"{name} {version}" for name, version in report["versions"].items())
    seconds = report["sum"].get("seconds")
    summed = f"sum of 16 MiB {1000 * seconds:.0f} ms" if seconds is not None else "no sum"
    return "; ".join([report["host"], report["device"], *disks, summed, told])


def _is_first_here() -> bool:
    """Of the processes on this machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


if __name__ == "__main__":
    run(main, __doc__)
