"""Seals of frozen weights: sha256 on the host, and a fingerprint that is computed where the weights lie.

sha256 reads every byte through the host: seconds for each ten gigabytes.  The fingerprint reads them at the speed of the
device's memory, in whole numbers alone: the same value on every device, whatever the pieces.

A row is C = 2¹⁴ consecutive 32-bit words w_c (the last one of a tensor is padded with zeros).  It is reduced to two sums
modulo 2⁶⁴,

    S = Σ_c w_c,   P = Σ_c w_c (2c + 1)³

and the fingerprint is sha256 over the names, types, shapes and sums of all tensors.  S differs when one word differs, or
when words of two rows are swapped, since |w − w'| < 2³².  P differs when two words of a row are swapped: it changes by
(w_i − w_j)((2j + 1)³ − (2i + 1)³), of which 2 divides the first factor at most 31 times and the second as often as
2(j − i), at most 14 times: less than 64 times together.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor

Named = Iterator[tuple[str, Tensor]]
Whole = Callable[[Tensor], AbstractContextManager[Any]]
_ROW = 2**14  # words
_PIECE = {"cpu": 2**19}  # bytes read at once: what fits into a core's cache; elsewhere:
_LARGE = 2**26


def digest(tensors: Named, whole: Whole = nullcontext) -> str:
    """Return sha256 over names and bytes of tensors, in the order of their names.   `whole`: gathers a partitioned one."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        total.update(name.encode())
        if tensor.is_meta:  # of a sketch, which has no bytes
            continue
        with whole(tensor):
            total.update(_bytes(tensor).cpu().numpy().data)
    return total.hexdigest()


@torch.no_grad()
def fingerprint(tensors: Named, whole: Whole = nullcontext) -> str:
    """Return a fingerprint that changes with any word, and with any swap of words, tensors or names.

    The host waits once, for the sums of all tensors.   `whole`: gathers a partitioned one.
    Units: scratch of 192 MiB on a GPU, 2 MiB on a CPU.
    """
    total, sums = hashlib.sha256(), []
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        with whole(tensor):
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            if not tensor.is_meta:  # of a sketch, which has no bytes
                sums.append(_sums(_bytes(tensor)))
    if sums:
        total.update(torch.cat([each.to(sums[0].device) for each in sums]).cpu().numpy().data)
    return total.hexdigest()


def _bytes(tensor: Tensor) -> UInt8[Tensor, " n"]:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _sums(data: UInt8[Tensor, " n"]) -> Int[Tensor, "rows 2"]:
    """(S, P) of each row of a tensor's bytes."""
    size = 4 * _ROW
    weight = (2 * torch.arange(_ROW, device=data.device) + 1) ** 3
    step = max(1, _PIECE.get(data.device.type, _LARGE) // size) * size
    sums = [torch.empty(0, 2, dtype=torch.int64, device=data.device)]
    for low in range(0, len(data), step):
        piece = data[low : low + step]
        if short := -len(piece) % size:
            piece = F.pad(piece, (0, short))
        elif piece.storage_offset() % 4:  # a view into a buffer of shorter words
            piece = piece.clone()
        rows = piece.view(torch.int32).view(-1, _ROW)
        sums.append(torch.stack([rows.sum(1), (rows * weight).sum(1)], 1))
    return torch.cat(sums)
