"""What training costs: tokens and items per second, peak memory, and the share of the device's peak."""

import resource
import time

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from distrec.runtime import Ranks

_aten = torch.ops.aten
_ATTENTION = {  # a processor's own, which torch does not count
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, **__: (
        sdpa_backward_flop_count(grad, q, k, v)
    ),
}


def flop_counter() -> FlopCounterMode:
    """Of matrix products and attention."""
    return FlopCounterMode(display=False, custom_mapping=_ATTENTION)


class Meter:
    """Counts between two readings.  MFU = FLOPs of the passes ÷ time ÷ FLOP/s of a bare matrix product here.

    Deviation: the peak is measured on this very device and dtype, not read from a data sheet; FLOPs per
    position are counted once, by torch, on the first step.
    """

    def __init__(self, ranks: Ranks, device: torch.device, dtype: torch.dtype):
        self.ranks = ranks
        self.device = device
        self.dtype = dtype
        self.counter: FlopCounterMode | None = None
        self.flops_per_position = 0.0
        self.peak = 0.0
        self._restart()

    def count_flops(self) -> FlopCounterMode:
        """A context for the first step's passes on this rank."""
        self.peak = matmul_speed(self.device, self.dtype)
        self.counter = flop_counter()
        return self.counter

    def counted(self, positions: int) -> None:
        if self.counter:
            self.flops_per_position = self.counter.get_total_flops() / max(1, positions)
        self._restart()

    def add(self, tokens: int, targets: int, places: int) -> None:
        """Of one step: tokens and targets on all ranks together, places with their padding on this one."""
        self.places += places
        self.tokens += tokens
        self.targets += targets

    def read(self) -> dict[str, float | None]:
        """Rates since the last reading, and peak memory of this process in GiB; no MFU where no FLOPs were counted."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            memory = torch.cuda.max_memory_allocated(self.device) / 2**30
        else:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        seconds = max(time.perf_counter() - self.started, 1e-9)
        tokens_per_s, targets_per_s = self.tokens / seconds, self.targets / seconds
        mfu = self.flops_per_position * self.places / seconds / self.peak if self.counter else None
        self._restart()
        return {
            "tokens_per_s": round(tokens_per_s, 1),
            "items_per_s": round(targets_per_s, 1),
            "peak_gib": round(memory, 3),
            "mfu": None if mfu is None else round(mfu, 4),
        }

    def _restart(self) -> None:
        self.tokens = self.targets = self.places = 0
        self.started = time.perf_counter()


def matmul_speed(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square product, the best of five."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.ones(n, n, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best
