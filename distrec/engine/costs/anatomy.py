"""What each part of a model takes of a training step: time by torch's profiler, FLOPs by the operators that it calls.

Forward, what runs belongs to the part whose module was entered last (models/parts.py); backward, to the part in which the
forward operator ran whose gradient it is: both carry the same sequence number.
"""

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from distrec.engine.costs.meter import flop_counter
from distrec.models.parts import Parts

REST = "rest"
_MARK, _WHOLE = "part/", "distrec whole"
Taken = dict[str, float]


class Frames:
    """`with Frames(model, parts) as frames:` then `frames.part` is the part that runs; `say` hears of each change."""

    def __init__(self, model: nn.Module, parts: Parts, say: Callable[[str], None] = lambda _: None):
        self._model, self._parts, self._say = model, parts, say
        self._frames = [REST]
        self.is_on = True

    @property
    def part(self) -> str:
        return self._frames[-1]

    def __enter__(self) -> "Frames":
        self._handles: list[Any] = []
        for module in self._model.modules():
            self._handles.append(module.register_forward_pre_hook(self._begin))
            if module in self._parts.after:  # before the hooks that are this part
                self._handles.append(module.register_forward_hook(self._between, prepend=True))
            self._handles.append(module.register_forward_hook(self._end))
        self._say(REST)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(self, module: nn.Module, _: Any) -> None:
        if self.is_on:
            self._frames.append(self._parts.inside.get(module, self.part))
            self._say(self.part)

    def _between(self, module: nn.Module, *_: Any) -> None:
        if self.is_on:
            self._frames[-1] = self._parts.after[module]
            self._say(self.part)

    def _end(self, module: nn.Module, *_: Any) -> None:
        if self.is_on:
            last = self._frames.pop()
            if module in self._parts.inside:
                self._frames[-1] = last
            self._say(self.part)


def seconds(model: nn.Module, parts: Parts, loss: Callable[[], Tensor], device: torch.device) -> tuple[Taken, float]:
    """(seconds by part, of the whole) of one forward and backward pass under the profiler.

    On a GPU a part's seconds are those of its kernels; what the whole has beyond them is idle, or waits.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as found:
        segment: list[Any] = []

        def say(part: str) -> None:
            if segment and segment[0].name == _MARK + part:
                return
            if segment:
                segment.pop().__exit__(None, None, None)
            segment.append(record_function(_MARK + part))
            segment[0].__enter__()

        with record_function(_WHOLE), Frames(model, parts, say) as frames:
            value = loss()
            frames.is_on = False  # what is worked out again for the gradient is the gradient's
            segment.pop().__exit__(None, None, None)
            value.backward()
            if on_gpu:
                torch.cuda.synchronize(device)
    return _sorted([event for event in found.events() or () if event.device_type.name == "CPU"], on_gpu)


def _sorted(events: list[Any], on_gpu: bool) -> tuple[Taken, float]:
    def of(event: Any) -> float:
        return (event.device_time_total if on_gpu else event.time_range.elapsed_us()) / 1e6

    events.sort(key=lambda event: event.time_range.start)
    segments = [event for event in events if event.name.startswith(_MARK)]
    starts = [event.time_range.start for event in segments]
    end = segments[-1].time_range.end
    taken: Taken = {}
    part_of: dict[int, str] = {}
    for event in segments:
        name = event.name.removeprefix(_MARK)
        taken[name] = taken.get(name, 0.0) + of(event)
    for event in events:
        at = event.time_range.start
        if event.sequence_nr >= 0 and starts[0] <= at < end:
            part_of[event.sequence_nr] = segments[bisect_right(starts, at) - 1].name.removeprefix(_MARK)
        elif event.scope == 1 and event.sequence_nr in part_of:  # a gradient's function
            name = part_of[event.sequence_nr]
            taken[name] = taken.get(name, 0.0) + of(event)
    whole = next(event for event in events if event.name == _WHOLE).time_range.elapsed_us() / 1e6
    taken.pop(REST, None)
    return taken, whole


class Flops(TorchDispatchMode):
    """FLOPs of matrix products and attention by part, while it is entered; `frames` tells which part runs."""

    def __init__(self, frames: Frames):
        super().__init__()
        self.taken: Taken = {}
        self._frames, self._counters = frames, flop_counter().flop_registry
        self._part_of: dict[int, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        node = torch._C._current_autograd_node()
        if node is None:  # forward: the operator's own gradient has just been numbered
            part = self._frames.part
            self._part_of.setdefault(torch.autograd._get_sequence_nr() - 1, part)  # pyright: ignore[reportPrivateImportUsage]
        else:
            part = self._part_of.get(node._sequence_nr(), REST)
        out = func(*args, **(kwargs or {}))
        if count := self._counters.get(func._overloadpacket):
            self.taken[part] = self.taken.get(part, 0.0) + count(*args, **(kwargs or {}), out_val=out)
        return out
