"""Files of vectors that say which row is which item.

A Parquet file (or a folder of its parts) with a column of ids and one of lists, an .npz file of `ids` and `vectors`, or
a .npy or .safetensors file with the ids beside it: `x.npy` with `x.ids.txt` (one id a line) or `x.ids.npy`.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from distrec.data.files import paths
from distrec.data.raw import ids as ids_rule
from distrec.runtime import brief

_PARQUET = (".parquet", ".pq")
TYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64}


def open_file(path: Path) -> Float[np.ndarray, "I D"]:
    """The vectors of a .npy or .safetensors file, memory-mapped (writes stay in memory).

    Raises: ValueError naming the file when it is truncated, not a table of numbers, or of another kind.
    """
    if path.suffix.lower() == ".npy":
        table = _load_numpy(path)
    elif path.suffix.lower() == ".safetensors":
        table = _map_safetensors(path)
    else:
        raise ValueError(
            f"{path}: vectors come as a folder of distrec embed, as .parquet or .npz with their ids, as .npy or as .safetensors"
        )
    return _numbers(table, path)


def _load_numpy(path: Path) -> Any:
    """An array that is memory-mapped, or the archive of several."""
    try:
        loaded = np.load(path, mmap_mode="c", allow_pickle=False)
        if isinstance(loaded, np.ndarray) == (path.suffix.lower() == ".npz"):
            raise ValueError("its bytes are of the other kind, .npy or .npz")
    except Exception as error:  # numpy raises whatever damaged bytes lead it to
        raise _broken(path, error) from None
    return loaded


def _broken(path: Path, error: Exception) -> ValueError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "Object arrays" in reason:
        reason = "it holds Python objects, which are never unpickled; save texts with .astype(str)"
    return ValueError(f"{path}: not a complete {path.suffix} file of numbers or texts: {reason.partition(': <')[0]}")


def _numbers(table: np.ndarray, path: Path) -> np.ndarray:
    """The table in a floating-point type that holds its numbers exactly.   Raises: ValueError when it is no such table."""
    if table.ndim == 2 and table.size and table.dtype.kind in "iu" and table.dtype.isnative:
        exact = table.astype(np.float32 if table.dtype.itemsize <= 2 else np.float64)
        if np.abs(exact).max() <= 2**53:
            return exact
        raise ValueError(f"{path}: its {table.dtype} numbers reach {np.abs(exact).max():.0e}: scale them to about 1")
    if table.ndim != 2 or table.dtype not in TYPES.values() or not table.size:
        raise ValueError(
            f"{path}: vectors are a table of float16, float32, float64 or whole numbers in native byte order, got {table.dtype} of shape {table.shape}"
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
        if entry["dtype"] not in TYPES:
            raise ValueError(f"its numbers are {entry['dtype']}, wanted: {', '.join(TYPES)}")
        dtype, shape = TYPES[entry["dtype"]], tuple(int(n) for n in entry["shape"])
        low, high = (int(place) for place in entry["data_offsets"])
        if min(shape, default=0) < 1 or low < 0 or high - low != math.prod(shape) * np.dtype(dtype).itemsize:
            raise ValueError(f"shape {shape} does not fit its bytes {low} to {high}")
    except (ValueError, KeyError, TypeError, StopIteration, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a safetensors file of floating-point vectors: {error}") from None
    if size < 8 + length + high:
        raise ValueError(f"{path}: truncated: {size:,} bytes, {8 + length + high:,} are announced")
    return np.memmap(path, dtype, "c", 8 + length + low, shape)


def parts(source: Path) -> list[Path]:
    """The files of a source: itself, or the Parquet parts of a folder and of those in it, by name."""
    return [path for path in paths.below(source) if path.suffix.lower() in _PARQUET] if source.is_dir() else [source]


def beside(source: Path) -> Path | None:
    """The file of ids that belongs to a file of vectors.   Raises: ValueError when there are two."""
    if source.suffix.lower() not in (".npy", ".safetensors"):
        return None
    found = [path for kind in ("txt", "npy") if (path := source.with_name(f"{source.stem}.ids.{kind}")).is_file()]
    if len(found) > 1:
        raise ValueError(f"{found[0]} and {found[1]} both hold the ids of {source}: remove one of them")
    return found[0] if found else None


def read(source: Path) -> tuple[np.ndarray, pl.Series | None]:
    """(the vectors as they stand in files of a user's own, the id of each row as text, None where nothing says it)."""
    if source.is_dir() or source.suffix.lower() in _PARQUET:
        return _read_parquet(source)
    if source.suffix.lower() == ".npz":
        return _read_archive(source)
    table, names = open_file(source), beside(source)
    if names is None:
        return table, None
    if names.suffix == ".npy":
        ids = _ids(_load_numpy(names), names)
    else:
        try:
            lines = names.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{names}: not a UTF-8 text, {error.reason} at byte {error.start:,}: save it as UTF-8"
            ) from None
        ids = _complete(pl.Series(lines[: -1 if lines[-1] == "" else None], dtype=pl.String), names)
    if len(ids) != len(table):
        raise ValueError(f"{names} holds {len(ids):,} ids, {source} has {len(table):,} vectors: one id a row")
    return table, ids


def _read_archive(source: Path) -> tuple[np.ndarray, pl.Series | None]:
    arrays = _load_numpy(source)
    if not {"ids", "vectors"} <= set(arrays.files):
        raise ValueError(
            f"{source}: wanted are the arrays ids and vectors, it holds {', '.join(arrays.files) or 'none'}"
        )
    try:
        numbers, names = arrays["vectors"], arrays["ids"]
    except Exception as error:  # numpy raises whatever damaged bytes lead it to
        raise _broken(source, error) from None
    table, ids = _numbers(numbers, source), _ids(names, source)
    if len(ids) != len(table):
        raise ValueError(f"{source} holds {len(ids):,} ids and {len(table):,} vectors: one id a row")
    return table, ids


def _read_parquet(source: Path) -> tuple[np.ndarray, pl.Series]:
    """The only column of lists, and the column `item` or the only other one."""
    files = parts(source)
    frames = [_open_parquet(path) for path in files]
    item, vector = _roles(frames[0], source)
    for path, part in zip(files, frames, strict=True):
        has_names = set(part.columns) == set(frames[0].columns) and _roles(part, path) == (item, vector)
        if not has_names or not _go_together(part[vector], frames[0][vector]):
            raise ValueError(f"{path} has {_said(part)}; {files[0].name} has {_said(frames[0])}: write all parts alike")
    ids = pl.concat([ids_rule.complete(part, item, path) for path, part in zip(files, frames, strict=True)])
    columns = [part[vector].alias("") for part in frames]
    if len({column.dtype for column in columns}) > 1:  # the widest type of floats holds the numbers of all
        columns = [column.arr.to_list() if isinstance(column.dtype, pl.Array) else column for column in columns]
    lists = pl.concat([column.to_frame() for column in columns], how="vertical_relaxed").to_series()
    if isinstance(lists.dtype, pl.List):
        lengths = lists.list.len()
        width = lengths.mode().max()
        odd = (lengths != width).fill_null(True)
        if odd.any() or not width:
            n, place = int(odd.sum()), int(odd.arg_max() or 0)
            raise ValueError(
                f"{source}: {n:,} of {len(ids):,} vectors have not {width} numbers as most, such as that of item "
                f"{brief(ids[place])} ({lengths[place] if lengths[place] is not None else 'null'})"
            )
        lists = lists.list.to_array(int(width))  # pyright: ignore[reportArgumentType]
    elif lists.has_nulls():
        raise ValueError(f"{source}: item {brief(ids[int(lists.is_null().arg_max() or 0)])} has null for its vector")
    return _numbers(lists.to_numpy(), source), ids


def _roles(frame: pl.DataFrame, path: Path) -> tuple[str, str]:
    """The names of the column of ids and of the column of vectors."""
    kinds = {name: "lists" if isinstance(kind, pl.List | pl.Array) else "ids" for name, kind in frame.schema.items()}
    lists, others = ([name for name in kinds if kinds[name] == kind] for kind in ("lists", "ids"))
    names = ["item"] if "item" in others else others
    if len(lists) != 1 or len(names) != 1:
        raise ValueError(
            f"{path}: wanted are a column of lists of numbers and the column item (or only one other), it has {_said(frame)}"
        )
    return names[0], lists[0]


def _go_together(*columns: pl.Series) -> bool:
    """Whether the lists of two parts hold numbers of one type, or floats of two widths."""
    inner = {column.dtype.inner for column in columns if isinstance(column.dtype, pl.List | pl.Array)}
    return len(inner) == 1 or all(kind.is_float() for kind in inner)


def _said(frame: pl.DataFrame) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in frame.schema.items())


def _open_parquet(path: Path) -> pl.DataFrame:
    try:
        return paths.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{path}: not a complete Parquet file of vectors: {str(error).splitlines()[0]}") from None


def _ids(values: np.ndarray, path: Path) -> pl.Series:
    if values.ndim != 1 or values.dtype.kind not in "iufUS":
        raise ValueError(f"{path}: ids are one text or whole number a row, got {values.dtype} of shape {values.shape}")
    return _complete(pl.Series(_texts(values, path) if values.dtype.kind in "US" else np.array(values)), path)


def _texts(values: np.ndarray, path: Path) -> np.ndarray:
    """Texts of four bytes a character, or UTF-8.   Raises: ValueError for what is no character."""
    if values.dtype.kind == "S":
        try:
            return np.char.decode(values, "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: ids {error.object!r} are no UTF-8: save texts with .astype(str)") from None
    code = values.view(np.dtype(np.uint32).newbyteorder(values.dtype.byteorder)).reshape(len(values), -1)
    wrong = ((code > sys.maxunicode) | ((code >= 0xD800) & (code < 0xE000))).any(1)
    if wrong.any():
        raise ValueError(f"{path}, row {int(wrong.argmax()) + 1}: ids hold what is no character: the file is damaged")
    return np.array(values)


def _complete(ids: pl.Series, path: Path) -> pl.Series:
    return ids_rule.complete(ids.to_frame("ids"), "ids", path)
