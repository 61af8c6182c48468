"""What training costs: tokens and items per second, peak memory, and the share of the device's peak."""

import resource
import time
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from distrec.engine.costs import cards
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


class Products(TorchDispatchMode):
    """Counts FLOPs of matrix products and attention, by the type that they are computed in, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: dict[torch.dtype, int] = {}
        self._counters = flop_counter().flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := self._counters.get(func._overloadpacket):
            kind = tree_leaves(out)[0].dtype
            self.flops[kind] = self.flops.get(kind, 0) + count(*args, **(kwargs or {}), out_val=out)
        return out


class Meter:
    """Counts between two readings.   MFU = seconds that the products of the passes take at the device's peak ÷ seconds.

    The peak is that of the type of each product: on a card that cards.py knows the data sheet's, elsewhere that of a
    bare product, measured.  `precision`: train.precision; with tf32 float32's products count against TF32's peak.

    Deviation: FLOPs a position are counted once, by torch, on the first batch; padded positions count.
    """

    def __init__(self, ranks: Ranks, device: torch.device, precision: str):
        self.ranks = ranks
        self.device = device
        self.precision = precision
        self.counter: Products | None = None
        self.ideal_per_position = 0.0
        self._restart()

    def count_flops(self) -> Products:
        """A context for the first batch's passes on this rank."""
        self.counter = Products()
        return self.counter

    def counted(self, positions: int) -> None:
        """End the count; `positions` of that batch, with padding."""
        if self.counter:
            flops = self.counter.flops.items()
            ideal = sum(count / peak(self.device, kind, self.precision) for kind, count in flops)
            self.ideal_per_position = ideal / max(1, positions)
        self._restart()

    def add(self, tokens: int, targets: int, places: int) -> None:
        """Of one step: tokens and targets on all ranks together, places with their padding on this one."""
        self.places += places
        self.tokens += tokens
        self.targets += targets

    def read(self) -> dict[str, float | None]:
        """Rates since the last reading.   The host waits for the device, once.

        Units: tokens_per_s, items_per_s: of all ranks together; peak_gib: GiB that tensors took at once on this GPU since
        the last reading, or of host memory since this process began; mfu: a share, None where no FLOPs were counted.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            memory = torch.cuda.max_memory_allocated(self.device) / 2**30
        else:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        seconds = max(time.perf_counter() - self.started, 1e-9)
        tokens_per_s, targets_per_s = self.tokens / seconds, self.targets / seconds
        mfu = self.ideal_per_position * self.places / seconds if self.counter else None
        self._restart()
        return {
            "tokens_per_s": round(tokens_per_s, 1),
            "items_per_s": round(targets_per_s, 1),
            "peak_gib": round(memory, 3),
            "mfu": None if mfu is None else round(mfu, 4),
        }

    def _restart(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.tokens = self.targets = self.places = 0
        self.started = time.perf_counter()


def peak(device: torch.device, kind: torch.dtype, precision: str) -> float:
    """FLOP/s of dense products of this type at most: by the card's data sheet, or else measured."""
    card = cards.named(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return card.peak(kind, precision) if card else matmul_speed(device, kind)


def matmul_speed(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square product of random numbers, the best of five."""
    n, times = (4096, 10) if device.type == "cuda" else (1024, 1)  # a launch and a wait cost a GPU tens of microseconds
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    out = torch.empty_like(a)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(times):
            torch.mm(a, a, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * times * n**3 / best
