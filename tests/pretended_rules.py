"""What CUDA refuses and what makes the host wait, by function: the rules of the pretended GPU (pretended.py)."""

from numbers import Number

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def _words(text):
    return frozenset(text.split())


# functions whose result, or its size, is read by the host
WAITS = _words(
    "item tolist __bool__ __int__ __float__ __index__ __complex__ __contains__ __repr__ __format__ is_nonzero equal allclose "
    "nonzero argwhere masked_select isin unique _unique2 unique_consecutive bincount histc multinomial _local_scalar_dense "
    "eigh linalg_eigh eigvalsh linalg_eigvalsh cholesky linalg_cholesky svd linalg_svd svdvals linalg_svdvals inverse inv "
    "linalg_inv solve linalg_solve linalg_lstsq pinverse linalg_pinv coalesce to_sparse to_sparse_csr sparse_coo_tensor"
)
# arguments of these, after the first that is given, are read as numbers where they are tensors
NUMBERS = _words("full_like new_full narrow view reshape expand repeat topk select")
FACTORIES = _words("arange full linspace zeros ones empty")
# these take tensors of both devices (4-bit weights have a class of their own, and so no device)
ANYWHERE = _words(
    "copy_ view_as expand_as reshape_as set_data _has_compatible_shallow_copy_type set_ gemm_4bit.default"
)
# these refuse even a scalar of the other device
STRICT = _words(
    "cat stack concat matmul mm bmm addmm linear embedding embedding_bag gather scatter_ scatter_add_ index_add_ index_copy_ "
    "searchsorted isin equal cdist _fused_adam_ _fused_adamw_"
)
# these look at a tensor without reading its values
LOOKS = _words("__getitem__ view reshape unbind split select narrow size dim numel __len__ is_pinned detach")


class OnGpu(Tensor):
    """A tensor in host memory that is said to lie on the GPU."""

    gpu = None  # the device that is being pretended

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if cls.gpu is not None:
            return cls.gpu.run(func, args, kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def on_gpu(thing):
    return isinstance(thing, OnGpu)


def place(tensor):
    return GPU if on_gpu(tensor) else CPU


def device_of(word):
    """The device of torch's words for it: a number is a GPU's."""
    return GPU if isinstance(word, int) or torch.device(word).type == "cuda" else torch.device(word)


def waits_of(name, args, kwargs):
    """Yields what the host waits for in a call that gets a tensor of the GPU."""
    if name in WAITS or name in ("numpy", "__array__"):
        yield name if name in WAITS else "to host"
    elif name == "where" and len(args) == 1:
        yield "nonzero"
    elif name == "repeat_interleave":
        if kwargs.get("output_size") is None and any(on_gpu(leaf) for leaf in args[1:]):
            yield name
    elif name == "one_hot":
        if (args[1] if len(args) > 1 else kwargs.get("num_classes", -1)) < 0:
            yield name
    elif name in ("masked_fill", "masked_fill_") and on_gpu(args[2] if len(args) > 2 else kwargs.get("value")):
        yield "item"
    elif name in FACTORIES or name in NUMBERS:
        numbers = tree_leaves((args[1:] if name in NUMBERS else args, kwargs))
        yield from ("item" for number in numbers if on_gpu(number) and number.ndim == 0)
    elif name in ("__getitem__", "__setitem__"):
        yield from _index_waits(name, *args)


def _index_waits(name, tensor, index, value=None):
    parts = index if isinstance(index, tuple) else (index,)
    bounds = [bound for part in parts if isinstance(part, slice) for bound in (part.start, part.stop, part.step)]
    parts = tree_leaves([part for part in parts if not isinstance(part, slice)])
    tensors = [part for part in parts if isinstance(part, Tensor)]
    masks = [part for part in tensors if part.dtype in (torch.bool, torch.uint8) and part.ndim and on_gpu(part)]
    is_filled = isinstance(value, Number) or (isinstance(value, Tensor) and not on_gpu(value) and value.numel() == 1)
    if masks and not is_filled:  # filling a mask with one number needs no places
        yield "mask"
    if any(on_gpu(bound) for bound in bounds) or any(on_gpu(part) and part.ndim == 0 for part in tensors):
        yield "item"
    if on_gpu(tensor) and (any(not on_gpu(part) and part.ndim for part in tensors) or _listed(index)):
        yield "index to GPU"
    if name == "__setitem__" and not masks:
        yield from _value_waits(tensor, parts, tensors, value)


def _listed(index):
    """Whether places are listed in Python, or in an array."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(
        isinstance(part, list) or (hasattr(part, "__array__") and not isinstance(part, Tensor | Number))
        for part in parts
    )


def _value_waits(tensor, parts, tensors, value):
    if on_gpu(tensor) and not on_gpu(value):
        is_number = isinstance(value, Number) or (isinstance(value, Tensor) and value.ndim == 0)
        # a number is a kernel's argument, but where a single element is set: that is a copy
        if not is_number or (
            len(parts) == tensor.ndim and all(isinstance(part, int) for part in parts) and not tensors
        ):
            yield "to GPU"
    elif not on_gpu(tensor) and on_gpu(value):
        yield "to host"


def faults_of(name, args, kwargs, leaves):
    """Yields what CUDA refuses in a call that gets a tensor of the GPU."""
    if name in ("numpy", "__array__"):
        if not kwargs.get("force"):
            yield f"{name}() of a CUDA tensor"
    elif name in ("__getitem__", "__setitem__"):
        tensors = [part for part in tree_leaves(args[1]) if isinstance(part, Tensor) and part.ndim]
        if not on_gpu(args[0]) and any(on_gpu(part) for part in tensors):
            yield "a CPU tensor indexed by a CUDA tensor"
        value = args[2] if len(args) > 2 else None
        if tensors and isinstance(value, Tensor) and value.ndim and on_gpu(value) != on_gpu(args[0]):
            yield "a value of another device put at places that a tensor lists"
    elif name == "set grad":
        if isinstance(args[1], Tensor) and on_gpu(args[0]) != on_gpu(args[1]):
            yield "a gradient of another device"
    elif name not in ANYWHERE and name != "set data":
        others = [leaf for leaf in leaves if not on_gpu(leaf) and leaf.layout == torch.strided]  # no other has a device
        if any(leaf.ndim or name in STRICT for leaf in others):
            yield f"{name}: tensors on cpu and on cuda"


def moves_freely(source, shape, dtype, non_blocking, is_pinned):
    """Whether a copy to the other device, into that shape and type, returns at once.

    The host's side must be pinned.  Another type, or gaps in the host's memory, bring in a pageable temporary.
    """
    is_same = source.dtype == dtype and source.shape == shape
    return bool(
        non_blocking
        and is_pinned
        and is_same
        and (on_gpu(source) or (source.layout == torch.strided and source.is_contiguous()))
    )
