"""Item attributes from JSON lines: any field, nested to any depth, as text."""

import io
from pathlib import Path
from typing import Any

import polars as pl

from distrec.data.raw import lines
from distrec.runtime import several


def read_json_table(path: Path, key: str, encoding: str = "utf-8") -> tuple[pl.DataFrame, pl.Series]:
    """(all fields of a file of JSON objects as String, the line of each row).

    Lists are joined by a bar, objects and lists of objects are JSON text, absent fields and nulls are null.

    Raises: ValueError naming file and line for what is no object, and for a `key` that is no id.
    """
    frames, begins, names = [], [], set()
    for first, block in lines.json_blocks(path, encoding):
        kinds = _kinds(block)
        names |= kinds.keys()
        frame = lines.parsed(path, first, block, {**kinds, key: pl.String})
        lines.check_ids(path, first, block, frame[key])
        for column in frame.select(pl.col(pl.String)).get_columns():
            if len(broken := column.str.contains("\0", literal=True).arg_true()):
                raise ValueError(
                    f"{path}, line {first + broken[0]}: {column.name} holds a NUL or half a surrogate pair (a cut emoji); mend it"
                )
        frames.append(frame.select(as_text(column) for column in frame.get_columns()))
        begins.append(pl.int_range(first, first + frame.height, dtype=pl.UInt32, eager=True))
    if key not in names:
        raise ValueError(f"{path}: no field {key!r}; found: {several(sorted(names))} (set data.columns)")
    return pl.concat(frames, how="diagonal", rechunk=False), pl.concat(begins).alias("line")


def first_fields(path: Path, encoding: str = "utf-8") -> list[str]:
    """The names of the fields of the first JSON object of a file."""
    row = lines.literal(next(lines.blocks(path, encoding), (1, b""))[1].split(b"\n", 1)[0])
    return list(row) if isinstance(row, dict) else []


def as_text(column: pl.Series) -> pl.Series:
    """Any attribute as text: a list of plain values joined by a bar, what is nested deeper as JSON; NaN is no value."""
    kind = column.dtype
    if isinstance(kind, pl.Array):
        column, kind = column.arr.to_list(), pl.List(kind.inner)
    if isinstance(kind, pl.List) and not kind.inner.is_nested():
        return column.list.eval(_plain(pl.element(), kind.inner)).list.join("|")
    if not kind.is_nested():
        return column.to_frame().select(_plain(pl.first(), kind)).to_series()
    boxed = pl.DataFrame({"": column}).to_struct(column.name).struct.json_encode()  # {"":…}
    inside = boxed.str.slice(4).str.strip_suffix("}")
    return inside.zip_with(column.is_not_null(), pl.Series([None], dtype=pl.String)).alias(column.name)


def _plain(value: pl.Expr, kind: Any) -> pl.Expr:
    if kind == pl.Duration:
        return value.dt.to_string("iso")
    return (value.fill_nan(None) if kind.is_float() else value).cast(pl.String)


def _kinds(block: bytes) -> dict[str, Any]:
    """The fields of a block: lists of plain values as they are, all else as (JSON) text."""
    try:
        kinds = dict(pl.read_ndjson(io.BytesIO(block), infer_schema_length=None).schema)
    except pl.exceptions.PolarsError:  # a field inside a field is of two types, or the block is no JSON
        rows = [row for text in block.split(b"\n") if isinstance(row := lines.literal(text), dict)]
        names = dict.fromkeys(name for row in rows for name in row)
        flat = {name: all(_is_flat_list(row.get(name)) for row in rows) for name in names}
        kinds = {name: pl.List(pl.String) if is_flat else pl.String for name, is_flat in flat.items()}
    return {
        name: kind if isinstance(kind, pl.List) and not kind.inner.is_nested() else pl.String
        for name, kind in kinds.items()
    }


def _is_flat_list(value: Any) -> bool:
    return value is None or (isinstance(value, list) and not any(isinstance(each, list | dict) for each in value))
