"""Item vectors: one row an item id, in a safetensors file that is memory-mapped; or a user's own, joined by id."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Float

from distrec.data import store
from distrec.data.files import vector_files
from distrec.data.files.vector_files import open_file
from distrec.data.prepared import Prepared
from distrec.runtime import brief, log

FILE = "vectors.safetensors"
VERSION = 2  # of what distrec embed makes; 1: the built-in encoder made noise of short texts
_BLOCK = 65_536  # rows looked at at once


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
    names = {np.dtype(kind): name for name, kind in vector_files.TYPES.items()}
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    entry = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [0, n_bytes]}
    header = json.dumps({"vectors": entry}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.flush()
        os.posix_fallocate(file.fileno(), 0, 8 + len(header) + n_bytes)  # a full disk says so here
    return np.memmap(path, dtype, "r+", 8 + len(header), shape)


def identity(source: Path) -> str:
    """What identifies the vectors at a place: an artefact's content, or the bytes of the files and of their ids."""
    if (source / FILE).is_file():
        return store.content(source)
    files = [*vector_files.parts(source), *([beside] if (beside := vector_files.beside(source)) else [])]
    digests = [store.file_digest(path) for path in files]
    return digests[0] if len(digests) == 1 else store.digest(digests)


def load(
    source: Path,
    data: Prepared,
    order: Literal["prepared"] | None = None,
    missing: Literal["refuse", "zero"] = "refuse",
) -> tuple[Float[np.ndarray, "I D"], str]:
    """(the vectors of these items in their order, what identifies them) from an artefact's folder or from files.

    `order`: of the rows of a file without ids; None refuses it.  `missing`: what an item without a vector gets.

    Raises: ValueError when they are about other items, broken, not finite, or nothing says which row is which item.
    """
    if not source.exists():
        raise ValueError(f"codes.vectors={source}: no such file or folder")
    if source.is_dir() and not (source / FILE).is_file() and not vector_files.parts(source):
        raise ValueError(f"codes.vectors={source} is no folder of vectors (made by distrec embed)")
    if (source / FILE).is_file():
        table, ids = _load_artefact(source, data), None
        if order:
            raise ValueError(
                f"codes.vectors_order={order} does nothing with {source}, whose order is known: leave it out"
            )
    else:
        table, ids = vector_files.read(source)
        if ids is not None and order:
            raise ValueError(
                f"codes.vectors_order={order} contradicts the ids of {source}: leave it out to join by id, or remove the ids"
            )
        if ids is None and not order:
            raise ValueError(
                f"{source} does not say which row is which item, and prepared items are in a shuffled order of their own. "
                f"Write the items' ids beside it, one a line, in {source.stem}.ids.txt, or pass a Parquet file of item and "
                "vector; where its rows follow what distrec prepare writes to ids=FILE, set codes.vectors_order=prepared"
            )
    if ids is not None:
        table = _joined(table, ids, source, data, missing)
    if len(table) != data.n_items:
        raise ValueError(f"{source} holds {len(table):,} vectors, {data.folder} has {data.n_items:,} items: one a row")
    if ids is not None or order:
        _check_values(table, source, data)
    return table, identity(source)


def raw_ids(data: Prepared) -> pl.Series:
    """The raw ids of the items in their prepared order."""
    return pl.Series("item", pl.from_arrow(data.items.data.column("raw")), dtype=pl.String)


def write_ids(path: Path, data: Prepared) -> None:
    """Write the raw ids in their prepared order, one a line (.txt) or as the column `item` (.parquet).

    Raises: ValueError when an id has a line break in it and the file is to have lines.
    """
    ids = raw_ids(data)
    if path.suffix == ".parquet":
        ids.to_frame().write_parquet(path)
        return
    if (broken := ids.filter(ids.str.contains("[\r\n]"))).len():
        raise ValueError(f"{path}: the item id {brief(broken[0])} has a line break in it: write ids=FILE.parquet")
    store.write_atomically(path, "".join(f"{name}\n" for name in ids))


def _load_artefact(source: Path, data: Prepared) -> np.ndarray:
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
    return open_file(source / FILE)


def _joined(
    table: np.ndarray, ids: pl.Series, source: Path, data: Prepared, missing: Literal["refuse", "zero"]
) -> np.ndarray:
    """The vectors in the order of the prepared items; the file's own where that is it.

    Raises: ValueError when an id is there twice, or an item has no vector.
    """
    if ids.is_duplicated().any():
        twice = ids.filter(ids.is_duplicated())
        first = int(ids.index_of(twice[0]) or 0)
        second = int(ids[first + 1 :].index_of(twice[0]) or 0) + first + 1
        raise ValueError(
            f"{source}: {twice.n_unique():,} ids stand there more than once, such as {brief(twice[0])} in rows {first + 1} and "
            f"{second + 1}: keep one vector an item"
        )
    items = raw_ids(data)
    rows = pl.DataFrame({"item": ids, "row": pl.int_range(len(ids), eager=True)})
    place = items.to_frame().join(rows, on="item", how="left", maintain_order="left")["row"]
    without, beyond = items.filter(place.is_null()), ids.filter(~ids.is_in(items.implode()))
    if len(without):
        told = f"{len(without):,} of {data.n_items:,} items have no vector in {source}, such as {_some(without)}"
        if missing == "refuse" or len(without) == len(items):
            other = f" (it has ids such as {_some(beyond)} that are no items)" if len(beyond) else ""
            raise ValueError(f"{told}{other}: add them, or set codes.vectors_missing=zero to give them the zero vector")
        log(f"{told}: they get the zero vector")
    if len(beyond):
        log(
            f"{len(beyond):,} of {len(ids):,} vectors of {source} are of no prepared item, such as {_some(beyond)}: not used"
        )
    if not len(without) and not len(beyond) and place.is_sorted():
        return table
    ordered = table[place.fill_null(0).to_numpy()]
    ordered[place.is_null().to_numpy()] = 0
    return ordered


def _some(names: pl.Series) -> str:
    return ", ".join(map(brief, names.head(3)))


def _check_values(table: np.ndarray, source: Path, data: Prepared) -> None:
    """Tell how many vectors are zero.   Raises: ValueError counting those with NaN or infinity, with their items."""
    bad, zero = [], []
    for low in range(0, len(table), _BLOCK):
        block = table[low : low + _BLOCK]
        bad.append(low + np.flatnonzero(~np.isfinite(block).all(1)))
        zero.append(low + np.flatnonzero(~block.any(1)))
    for rows, what in ((np.concatenate(bad), "hold NaN or infinity"), (np.concatenate(zero), "are zero")):
        if len(rows):
            some = ", ".join(repr(data.items[int(i)]["raw"]) for i in rows[:3])
            told = f"{source}: {len(rows):,} of {len(table):,} vectors {what}, such as those of the items {some}"
            if what != "are zero":
                raise ValueError(f"{told}: mend them, or leave them out and set codes.vectors_missing=zero")
            log(told)
