"""A pretended GPU for machines without one: CPU tensors that say cuda:0, refuse what CUDA refuses, and count host waits.

    with Gpu() as gpu:            # torch.cuda reports one device
        ...                       # the program
    gpu.waits                     # Counter: (what, "file:line") → how often the host waited for the device
    gpu.faults                    # Counter: what CUDA would have refused (Gpu(strict=True) raises instead)

The values are real, so every branch is taken.  A host wait is a moment in which the CPU stands still until the device has
done all that was queued: a value is read, a size depends on values, or memory is copied that is not pinned.

Import peft, bitsandbytes and sentence_transformers before: they look for a GPU when they are imported.
It cannot see: types that a CUDA kernel lacks, determinism, rounding, memory, speed, other processes, and whatever C++ does
between two Python calls (the backward pass).
"""

import sys
from collections import Counter
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from unittest import mock

import torch
import torch._dynamo  # compares signatures when it is imported: before any is patched
from pretended_cuda import Generator, answers, for_cpu, grouped, without_device
from pretended_rules import CPU, GPU, LOOKS, OnGpu, device_of, faults_of, moves_freely, on_gpu, place, waits_of
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import _allowed_determinism_checks_to_fns as saved_metadata

ROOT = Path(__file__).resolve().parents[1]
PRETENDING = tuple(str(ROOT / "tests" / f"{name}.py") for name in ("pretended", "pretended_cuda", "pretended_rules"))
SENT = {GPU: "to GPU", CPU: "to host"}
MEMORY = ("pin_memory", "is_pinned", "record_stream", "get_device")
FROM_DATA = ("tensor", "as_tensor", "asarray", "new_tensor")
WORDS = {  # the words of Tensor.to
    "type_as": lambda other: {"other": other},
    "cpu": lambda **_: {"device": CPU},
    "cuda": lambda device=None, non_blocking=False, **_: {"device": GPU, "non_blocking": non_blocking},
}


def storage(tensor):
    """The memory of a tensor that has one block of it."""
    return tensor.untyped_storage() if tensor.layout == torch.strided and tensor.device.type == "cpu" else None


class Gpu(TorchFunctionMode):
    """The device; torch.cuda speaks of it inside a `with`.  `free`: bytes that it reports as free."""

    def __init__(self, strict=False, free=64 * 2**30):
        super().__init__()
        self.strict, self.free = strict, free
        self.waits, self.faults = Counter(), Counter()
        self.n_backward = 0  # passes that are running
        self.pinned, self.in_flight = {}, {}  # storages: pinned; still being written by a copy to the host

    # -- entering: what torch.cuda answers
    def __enter__(self):
        self._stack = ExitStack()
        patch = lambda *words: self._stack.enter_context(mock.patch.object(*words))  # noqa: E731
        for name, value in answers(self).items():
            patch(torch.cuda, name, value)
        patch(torch, "Generator", Generator)
        autocast = torch.amp.autocast_mode.autocast
        for owner, name, nth in (
            (autocast, "__init__", 1),
            (torch, "is_autocast_enabled", 0),
            (torch, "get_autocast_dtype", 0),
        ):
            patch(owner, name, for_cpu(getattr(owner, name), nth))
        # a parameter that moves becomes another object, one that stays does not
        patch(torch, "_has_compatible_shallow_copy_type", lambda one, two: on_gpu(one) == on_gpu(two))
        # optimizers group by device and choose fused or multi-tensor kernels as on CUDA
        for module in (import_module("torch.optim.optimizer"), _foreach_utils):
            patch(module, "_foreach_supported_types", [*module._foreach_supported_types, OnGpu])
        patch(torch._C, "_group_tensors_by_device_and_dtype", grouped(torch._C._group_tensors_by_device_and_dtype))
        patch(torch.autograd, "_engine_run_backward", self._backward(torch.autograd._engine_run_backward))
        for name, describe in saved_metadata.items():  # compares what C++ saved with what Python saved
            self._stack.enter_context(mock.patch.dict(saved_metadata, {name: without_device(describe)}))
        OnGpu.gpu = self
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        OnGpu.gpu = None
        self._stack.close()

    # -- reporting
    def where(self):
        """file:line of the nearest caller in this checkout; else of the nearest caller."""
        frame, nearest = sys._getframe(1), None
        while frame is not None:
            path = frame.f_code.co_filename
            if path not in PRETENDING:
                nearest = nearest or f"{path.rsplit('site-packages/', 1)[-1]}:{frame.f_lineno}"
                if path.startswith(f"{ROOT}/") and "site-packages" not in path:
                    return f"{path.removeprefix(f'{ROOT}/')}:{frame.f_lineno}"
            frame = frame.f_back
        return nearest or "?"

    def wait(self, what):
        self.waits[what, self.where()] += 1

    def synchronize(self, what):
        self.wait(what)
        self.in_flight.clear()

    def fault(self, what):
        where = self.where()
        self.faults[what, where] += 1
        if self.strict:
            raise RuntimeError(f"CUDA would refuse: {what} at {where}")

    # -- every call
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        name = getattr(func, "__name__", str(func))
        with torch._C.DisableTorchFunctionSubclass():
            if name == "__get__":
                return self._property(func, args[0])
            if func is torch.device and isinstance(args[0], int):
                return GPU
            if name == "__set__":
                name = f"set {func.__self__.__name__}"
            return self._call(func, name, args, dict(kwargs))

    def _call(self, func, name, args, kwargs):
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if self.in_flight and name not in LOOKS:
            self._check_in_flight(name, args, leaves)
        if name == "to":
            return self._move(*args, **kwargs)
        if name in WORDS:
            return self._move(args[0], **WORDS[name](*args[1:], **kwargs))
        if name in MEMORY:
            return self._memory(name, args[0])
        is_there = any(on_gpu(leaf) for leaf in leaves)
        target, is_pinned = self._target(name, args, kwargs, is_there), kwargs.pop("pin_memory", False)
        if is_there:
            self._check(name, args, kwargs, leaves)
        if (dtype := kwargs.pop("out_dtype", None)) is not None:  # CPUs have no such product
            args = tree_map_only(Tensor, lambda leaf: leaf.to(dtype), args)
        if name in ("__format__", "__repr__"):  # which ask for the class
            args = (args[0].as_subclass(Tensor), *args[1:])
        out = self._marked(func(*args, **kwargs), target, leaves)
        return self._pin(out) if is_pinned else out

    def _check(self, name, args, kwargs, leaves):
        for what in waits_of(name, args, kwargs):
            self.wait(what)
        for what in faults_of(name, args, kwargs, leaves) if self.n_backward == 0 else ():
            self.fault(what)
        if name == "copy_" and on_gpu(args[0]) != on_gpu(args[1]):
            self._copy(args[1], args[0], args[2] if len(args) > 2 else kwargs.get("non_blocking", False))

    @staticmethod
    def _marked(out, target, leaves):
        known = {id(leaf) for leaf in leaves}

        def mark(tensor):
            if tensor.layout != torch.strided:  # a sparse tensor cannot be of another class
                return tensor
            if target == GPU and not on_gpu(tensor):
                is_leaf = tensor.requires_grad and tensor.is_leaf and id(tensor) not in known
                return tensor.detach().as_subclass(OnGpu).requires_grad_() if is_leaf else tensor.as_subclass(OnGpu)
            if target == GPU:
                return tensor
            return tensor.as_subclass(Tensor) if on_gpu(tensor) and id(tensor) not in known else tensor

        return tree_map_only(Tensor, mark, out)

    def _property(self, func, tensor):
        name = func.__self__.__name__
        if name in ("device", "is_cuda", "is_cpu") and on_gpu(tensor):
            return {"device": GPU, "is_cuda": True, "is_cpu": False}[name]
        return self._marked(func(tensor), place(tensor), [tensor])

    def _backward(self, engine):
        """What Python does in a backward pass is seen too, though gradients come from C++, where they have no device."""

        def run(*words, **named):
            self.n_backward += 1
            try:
                with torch._C._EnableTorchFunction(), Again(self):
                    return engine(*words, **named)
            finally:
                self.n_backward -= 1

        return run

    # -- devices
    def _target(self, name, args, kwargs, is_there):
        """Where the result lies; takes the device out of kwargs, and checks that a generator is of the same."""
        device = kwargs.get("device")
        target = GPU if is_there else CPU
        if name in FROM_DATA:
            target = self._from_data(name, args, kwargs)
        elif name.endswith("_like") or name.startswith("new_"):
            target = place(args[0])
        if device is not None:
            target = device_of(device)
            kwargs["device"] = CPU if target == GPU else target
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != target.type:
            self.fault(f"a generator of {generator.device.type} for a tensor on {target.type}")
        return target

    def _from_data(self, name, args, kwargs):
        """Where a tensor of other data comes to lie; numbers on the GPU are read one by one, numbers on the host are sent."""
        data = args[-1] if args else kwargs["data"]
        source = place(data)
        target = place(args[0]) if name == "new_tensor" else source
        if kwargs.get("device") is not None:
            target = device_of(kwargs["device"])
        if not isinstance(data, Tensor):
            for _ in (leaf for leaf in tree_leaves(data) if on_gpu(leaf)):
                self.wait("item")
        if source != target and target in SENT:
            self.wait(SENT[target])
        return target

    def _move(self, tensor, *rest, device=None, dtype=None, other=None, non_blocking=False, copy=False, **more):
        """Tensor.to: (device, dtype, non_blocking, copy), (dtype, …), (other, …)."""
        flags = [word for word in rest if isinstance(word, bool)]
        non_blocking, copy = (*flags, *(non_blocking, copy)[len(flags) :])
        for word in rest:
            if isinstance(word, torch.dtype):
                dtype = word
            elif isinstance(word, Tensor):
                other = word
            elif word is not None and not isinstance(word, bool):
                device = word
        if other is not None:
            device, dtype = place(other), other.dtype
        target = place(tensor) if device is None else device_of(device)
        dtype = dtype or tensor.dtype
        sent = target != place(tensor) and target in SENT
        out = Tensor.to(tensor, CPU if target == GPU else target, dtype, copy=copy or sent, **more)
        out = self._marked(out, target, [] if sent else [tensor])
        if sent:
            if target == CPU and non_blocking and dtype == tensor.dtype:
                self._pin(out)  # so does torch
            self._copy(tensor, out, non_blocking)
        return out

    # -- memory
    def _copy(self, source, target, non_blocking):
        host = target if on_gpu(source) else source
        if not moves_freely(source, target.shape, target.dtype, non_blocking, self._is_pinned(host)):
            self.wait(SENT[place(target)])
        elif on_gpu(source):
            self.in_flight[storage(host)._cdata] = StorageWeakRef(storage(host))

    def _check_in_flight(self, name, args, leaves):
        for leaf in leaves:
            if not on_gpu(leaf) and self._among(leaf, self.in_flight) and not (name == "copy_" and leaf is args[0]):
                self.fault(f"{name} of memory that a copy from the GPU may still be writing")

    def _memory(self, name, tensor):
        if name == "get_device":
            return 0 if on_gpu(tensor) else -1
        if name == "is_pinned":
            return not on_gpu(tensor) and self._is_pinned(tensor)
        if name == "pin_memory":
            if on_gpu(tensor):
                self.fault("pin_memory() of a CUDA tensor")
            return tensor if self._is_pinned(tensor) else self._pin(tensor.clone())
        return None  # record_stream: nothing is freed early

    def _pin(self, tensor):
        self.pinned[storage(tensor)._cdata] = StorageWeakRef(storage(tensor))  # whose address is not used again
        return tensor

    def _is_pinned(self, tensor):
        return self._among(tensor, self.pinned)

    @staticmethod
    def _among(tensor, storages):
        block = storage(tensor)
        return block is not None and block._cdata in storages


class Again(TorchFunctionMode):
    """Hands calls to a mode that stands aside while it handles one."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.gpu.run(func, args, kwargs or {})
