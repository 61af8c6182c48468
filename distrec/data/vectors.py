"""Item vectors: one row an item id, in a safetensors file that is memory-mapped."""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from distrec.data import store
from distrec.data.prepared import Prepared

FILE = "vectors.safetensors"
VERSION = 2  # of what distrec embed makes; 1: the built-in encoder made noise of short texts
_TYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64}


def texts_digest(data: Prepared) -> str:
    """sha256 of all item texts in the order of ids."""
    total = hashlib.sha256()
    for batch in text_batches(data, 65_536):
        total.update(json.dumps(batch).encode())
    return total.hexdigest()


def text_batches(data: Prepared, size: int) -> Iterator[list[str]]:
    for low in range(0, data.n_items, size):
        yield texts(data, slice(low, low + size))


def texts(data: Prepared, place: slice) -> list[str]:
    return list(data.items[place.start : min(place.stop, data.n_items)]["text"])


def create(path: Path, shape: tuple[int, int], dtype: np.dtype) -> np.memmap:
    """A safetensors file with the one tensor `vectors`, mapped for writing."""
    names = {np.dtype(kind): name for name, kind in _TYPES.items()}
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    entry = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [0, n_bytes]}
    header = json.dumps({"vectors": entry}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.flush()
        os.posix_fallocate(file.fileno(), 0, 8 + len(header) + n_bytes)  # a full disk says so here
    return np.memmap(path, dtype, "r+", 8 + len(header), shape)


def open_file(path: Path) -> Float[np.ndarray, "I D"]:
    """The vectors of a .npy or .safetensors file, memory-mapped (writes stay in memory).

    Raises: ValueError naming the file when it is truncated, not a table of floating-point numbers, or of another kind.
    """
    if path.suffix == ".npy":
        try:
            table = np.load(path, mmap_mode="c", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path}: not a complete .npy file of numbers: {error}") from None
    elif path.suffix == ".safetensors":
        table = _map_safetensors(path)
    else:
        raise ValueError(f"{path}: vectors come as a folder of distrec embed, as .npy or as .safetensors")
    if table.ndim != 2 or table.dtype not in _TYPES.values() or not table.size:
        raise ValueError(
            f"{path}: vectors are a table of float16, float32 or float64 numbers in native byte order, got {table.dtype} of shape {table.shape}"
        )
    return table


def _map_safetensors(path: Path) -> np.ndarray:
    """The file's tensor `vectors`, or its only one."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            tensors: dict[str, Any] = json.loads(file.read(min(length, size)))
        tensors.pop("__metadata__", None)
        entry = tensors["vectors"] if "vectors" in tensors else next(iter(tensors.values()))
        if len(tensors) > 1 and "vectors" not in tensors:
            raise ValueError(f"which tensor? it holds {', '.join(tensors)} and none is named vectors")
        if entry["dtype"] not in _TYPES:
            raise ValueError(f"its numbers are {entry['dtype']}, wanted: {', '.join(_TYPES)}")
        dtype, shape = _TYPES[entry["dtype"]], tuple(int(n) for n in entry["shape"])
        low, high = (int(place) for place in entry["data_offsets"])
        if min(shape, default=0) < 1 or low < 0 or high - low != math.prod(shape) * np.dtype(dtype).itemsize:
            raise ValueError(f"shape {shape} does not fit its bytes {low} to {high}")
    except (ValueError, KeyError, TypeError, StopIteration, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a safetensors file of floating-point vectors: {error}") from None
    if size < 8 + length + high:
        raise ValueError(f"{path}: truncated: {size:,} bytes, {8 + length + high:,} are announced")
    return np.memmap(path, dtype, "c", 8 + length + low, shape)


def load(source: Path, data: Prepared) -> tuple[Float[np.ndarray, "I D"], str]:
    """(the vectors of these items, what identifies them) from an artefact's folder or from a file.

    Raises: ValueError when they are about other items, or broken.
    """
    if not source.exists():
        raise ValueError(f"codes.vectors={source}: no such file or folder")
    if source.is_dir() and not (source / FILE).is_file():
        raise ValueError(f"codes.vectors={source} is no folder of vectors (made by distrec embed)")
    if source.is_dir():
        made_by = store.verify(source)["made_by"]
        if "encoder" in made_by and made_by.get("version") != VERSION:
            raise ValueError(
                f"{source} is stale: version {made_by.get('version', 1)} of distrec embed made it, this is version {VERSION}. "
                "Leave codes.vectors out, or embed these items again"
            )
        if made_by.get("texts") != texts_digest(data):
            raise ValueError(
                f"{source} was made from other item texts than those of {data.folder}: embed these items again"
            )
        table, identity = open_file(source / FILE), store.content(source)
    else:
        table, identity = open_file(source), store.file_digest(source)
    if len(table) != data.n_items:
        raise ValueError(f"{source} holds {len(table):,} vectors, {data.folder} has {data.n_items:,} items: one a row")
    return table, identity
