"""Tables and indices on their way to a GPU: through pinned memory, so that the host never waits for a copy.

Shapes: N rows on this rank, n rows of a block, D dimensions.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def is_afar(x: Tensor, device: torch.device | str) -> bool:
    """Return whether a tensor lies in host memory while a GPU works on it."""
    return x.device.type == "cpu" and torch.device(device).type == "cuda"


def sent(x: Tensor, device: torch.device | str) -> Tensor:
    """Return a small tensor on the device; only a copy back to the host waits."""
    return x.pin_memory().to(device, non_blocking=True) if is_afar(x, device) else x.to(device)


def picked(x: Tensor, place: slice | Tensor, device: torch.device | str) -> Tensor:
    """Return some rows of a table, or of a list, gathered where it lies, on the device."""
    if isinstance(place, Tensor):
        place = sent(place, x.device)
    return sent(x[place], device)


def streamed(
    source: Float[Tensor, "N D"], places: Sequence[slice], device: torch.device | str
) -> Iterator[tuple[slice, Float[Tensor, "n D"]]]:
    """Yield (place, the rows there, on the GPU and in the source's type), one copy ahead of the work.

    Two buffers on either side.  While the GPU works on a block, the host fills the other pinned buffer and a stream of
    copies sends it.  A block is overwritten by the one after the next.
    """
    work, copies = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    shape = (max((place.stop - place.start for place in places), default=0), *source.shape[1:])
    slots = [
        (
            torch.empty(shape, dtype=source.dtype, pin_memory=True),
            torch.empty(shape, dtype=source.dtype, device=device),
            torch.cuda.Event(),  # the host's buffer has been sent
            torch.cuda.Event(),  # the GPU's buffer has been worked on
        )
        for _ in range(2)
    ]
    copies.wait_stream(work)  # whatever had the memory of the buffers before
    for number, place in enumerate(places):
        host, there, is_sent, is_used = slots[number % 2]
        n = place.stop - place.start
        if not is_sent.query():
            is_sent.synchronize()
        host[:n].copy_(source[place])
        with torch.cuda.stream(copies):
            copies.wait_event(is_used)
            there[:n].copy_(host[:n], non_blocking=True)
            is_sent.record(copies)
        work.wait_event(is_sent)
        yield place, there[:n]
        is_used.record(work)


def spare_memory(device: torch.device | str) -> int:
    """Return the bytes of the GPU that nothing holds, those that torch keeps for later included."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]
