"""What torch.cuda is under the pretended GPU (pretended.py): answers, events, streams, generators."""

from types import SimpleNamespace

import torch
from pretended_rules import CPU, GPU, OnGpu, place


class Generator(torch.Generator):
    """A generator that remembers for which device it was asked."""

    def __new__(cls, device="cpu"):
        generator = super().__new__(cls, "cpu")
        generator.on_gpu = torch.device(device).type == "cuda"
        return generator

    @property
    def device(self):
        return GPU if self.on_gpu else CPU


class Event:
    """An event of the device's queue: synchronize() is a host wait, query() is none."""

    def __init__(self, *_, **__):
        self._copies = {}

    def record(self, stream=None):
        self._copies = dict(OnGpu.gpu.in_flight)

    def query(self):
        in_flight = OnGpu.gpu.in_flight
        for storage, copy in self._copies.items():
            if in_flight.get(storage) is copy:  # no later one
                del in_flight[storage]
        return True

    def synchronize(self):
        OnGpu.gpu.wait("event")
        self.query()

    def wait(self, stream=None):
        """Another stream waits, not the host."""

    def elapsed_time(self, end):
        return 1.0


class Stream:
    """A queue of the device; everything is done at once, so that their order does not matter."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def synchronize(self):
        OnGpu.gpu.synchronize("stream")

    def query(self):
        return True

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        pass

    def wait_stream(self, stream):
        pass


def answers(gpu):
    """What each name of torch.cuda is replaced by."""
    total, stream = 80 * 2**30, Stream()
    facts = SimpleNamespace(name="pretended", total_memory=total, major=9, minor=0, multi_processor_count=132)
    constant = {
        "is_available": True, "device_count": 1, "current_device": 0, "is_initialized": True, "is_bf16_supported": True,
        "get_device_properties": facts, "get_device_name": "NVIDIA H100 80GB HBM3", "get_device_capability": (9, 0),
        "mem_get_info": (gpu.free, total), "memory_allocated": 0, "max_memory_allocated": 0, "memory_reserved": 0,
        "max_memory_reserved": 0, "set_device": None, "manual_seed": None, "manual_seed_all": None, "empty_cache": None,
        "set_rng_state": None, "reset_peak_memory_stats": None, "_lazy_init": None, "_is_in_bad_fork": False,
        "current_stream": stream, "default_stream": stream, "stream": stream,
    }  # fmt: skip
    return {name: (lambda *_, value=value, **__: value) for name, value in constant.items()} | {
        "synchronize": lambda *_: gpu.synchronize("synchronize"),
        "get_rng_state": lambda *_: torch.default_generator.get_state(),
        "default_generators": (torch.Generator(),),
        "Event": Event,
        "Stream": Stream,
    }


def for_cpu(function, nth):
    """A function of a device's name that is told "cpu" instead of "cuda"."""

    def run(*words, **named):
        words = [("cpu" if i == nth and word == "cuda" else word) for i, word in enumerate(words)]
        return function(*words, **{key: "cpu" if word == "cuda" else word for key, word in named.items()})

    return run


def grouped(function):
    """torch's grouping of tensors by device and type, with the pretended device as key."""

    def run(lists, with_indices=False):
        groups = function(lists, with_indices)
        return {(place(group[0][0][0]), key[1]): group for key, group in groups.items()}

    return run


def without_device(describe):
    """A description of a tensor in which both devices are the same."""

    def run(tensor):
        with torch._C.DisableTorchFunction():
            return describe(tensor)

    return run
