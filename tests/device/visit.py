"""What the sections of a visit share: its settings, the clock, and the result that grows."""

import json
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Visit:
    """Set once by check.py (or a test) before any section runs."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    small: bool = True
    budget: float = 520.0  # seconds
    data: Path = Path("data")  # folder of the real catalogues
    out: Path = Path("out")  # where result.json grows
    work: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="check-")))
    only: str = ""  # the one case of a section to run, "" for all
    began: float = field(default_factory=time.monotonic)
    result: dict[str, Any] = field(default_factory=dict)
    section: str = ""

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"


visit = Visit()
SECTIONS: dict[str, tuple[float, Callable[[], None]]] = {}


def section(seconds: float) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Registers a section and about how long it takes on a GPU."""

    def register(function: Callable[[], None]) -> Callable[[], None]:
        SECTIONS[function.__name__] = seconds, function
        return function

    return register


def run(name: str) -> None:
    """Run a section; whatever it raises is part of the result, which is written after it."""
    visit.section = name
    began = time.monotonic()
    print(name, flush=True)
    try:
        SECTIONS[name][1]()
    except Exception as error:  # the other sections still run
        visit.result.setdefault(name, {})["FAILED"] = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    visit.result.setdefault(name, {})["seconds"] = round(time.monotonic() - began, 1)
    print(f"  ({time.monotonic() - began:.1f} s; {left():.0f} s left)", flush=True)
    if visit.is_gpu:
        torch.cuda.empty_cache()
    (visit.out / "result.json").write_text(json.dumps(visit.result, indent=1, default=str))


def left() -> float:
    """Seconds of the budget that are left."""
    return visit.budget - (time.monotonic() - visit.began)


def say(name: str, **values: Any) -> None:
    shown = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
    print(f"  {name:<34}", "  ".join(shown), flush=True)
    visit.result.setdefault(visit.section, {})[name] = values


def failed(name: str, error: Exception) -> None:
    """Report one case of a section that raised."""
    say(name, FAILED=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}")
    traceback.print_exc()


def sync() -> None:
    if visit.is_gpu:
        torch.cuda.synchronize()


def timed(function: Callable[[], Any], rounds: int = 5, warm: int = 2) -> float:
    """The median of some rounds, in seconds."""
    for _ in range(warm):
        function()
    seconds = []
    for _ in range(rounds):
        sync()
        began = time.perf_counter()
        function()
        sync()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def apart(one: torch.Tensor, two: torch.Tensor) -> float:
    """‖one − two‖ / ‖two‖."""
    one, two = one.detach().double().cpu(), two.detach().double().cpu()
    return float((one - two).norm() / two.norm().clamp(min=1e-30))


def gib() -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if visit.is_gpu else 0.0
