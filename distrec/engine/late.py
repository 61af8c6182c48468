"""Numbers of a device that the host reads later, while the device goes on."""

import torch
from torch import Tensor


class Late:
    """A copy of a small tensor on its way to the host; `read()` waits for it alone, not for what was queued after it."""

    def __init__(self, values: Tensor):
        self._event = None
        self._values = values
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype).pin_memory()
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> list[float]:
        """The numbers as the device had them when this object was made."""
        if self._event is not None:
            self._event.synchronize()
        return self._values.tolist()
