"""What a run takes on a cluster: memory of a process, seconds of a step, by formulas (docs/scale.md explains them).

W bytes of frozen weights   P trained parameters, in float32   n processes   A a pass's activations
copies   W + 4P + 4P + 8P + A             (+ 4P: the buckets of DDP, n > 1)
ZeRO-1   W + 4P + 4P + (4 + 4 + 8)P/n + bucket + A
ZeRO-2   W + 4P +      (4 + 4 + 8)P/n + bucket + A
ZeRO-3   W/n + min(W, 10⁹ weights) + 4P + (4 + 4 + 4 + 8)P/n + bucket + A
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from distrec.engine.costs.cards import Device
from distrec.engine.costs.rehearsal import Flops
from distrec.engine.parallel import BUCKET

_LIVE = 10**9  # weights that ZeRO-3 holds at once (DeepSpeed's stage3_max_live_parameters)


CONTEXT = {"cuda": 1.0, "cpu": 0.5}  # GiB of a process before anything is in it: the driver's or the libraries' own
SLACK = {"cuda": 1.05, "cpu": 1.3}  # of what an allocator holds to what is in use; glibc's was measured


@dataclass(frozen=True)
class Weights:
    """Of a model: `frozen` as they lie in memory, `widest` the largest that is unpacked for a product; `trained`: their number."""

    frozen: int
    elements: int
    widest: int
    trained: int


def memory(weights: Weights, stage: int, size: int, is_offloaded: bool = False) -> dict[str, float]:
    """Bytes of a process but for activations, by part; `stage` of ZeRO."""
    frozen, trained = float(weights.frozen), 4.0 * weights.trained
    share = trained / size
    if stage == 0:
        buckets = trained if size > 1 else 0.0
        return {"frozen": frozen, "trained": trained, "gradients": trained, "optimiser": 2 * trained, "launch": buckets}
    if stage == 3:
        frozen = frozen / size + frozen * min(1.0, _LIVE / max(1, weights.elements))
    copies = share * (2 if stage == 3 else 1)
    return {
        "frozen": frozen,
        "trained": trained,
        "gradients": share + (trained if stage == 1 else 0.0),
        "optimiser": 0.0 if is_offloaded else 2 * share + copies,
        "launch": 4.0 * min(BUCKET, weights.trained),
    }


def seconds(flops: Flops, device: Device, mfu: float, precision: str = "no") -> float:
    """Seconds of these products on one device.

    `mfu`: the share of its peak that a run reaches (metrics.jsonl has it); `precision`: train.precision.
    """
    return sum(count / (device.peak(kind, precision) * mfu) for kind, count in flops.items())


def update(weights: Weights, device: Device, sharers: int) -> float:
    """Seconds of the optimiser's pass: weights, gradients and both moments are read, all but gradients written."""
    return 28.0 * weights.trained / sharers / device.memory


def exchange(weights: Weights, stage: int, size: int, device: Device, per_node: int, pieces: int) -> float:
    """Seconds of a step's exchange, none of it hidden behind the passes: gradients once; under ZeRO-3 the frozen weights
    in each pass, forward and backward."""
    if size == 1:
        return 0.0
    speed = device.inside if size <= per_node else device.between
    moved = 2 * 4.0 * weights.trained + (2 * pieces * weights.frozen if stage == 3 else 0.0)
    return moved * (size - 1) / size / speed


def scaled(flops: Mapping[torch.dtype, int], by: float) -> Flops:
    return {kind: int(count * by) for kind, count in flops.items()}


def total(*parts: Flops) -> Flops:
    return {kind: sum(part.get(kind, 0) for part in parts) for kind in {kind for part in parts for kind in part}}
