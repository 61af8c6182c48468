"""Any CSV, TSV, Parquet or JSONL file with named columns (`data.columns`)."""

from pathlib import Path

import polars as pl

from distrec.data.preparation import given
from distrec.data.raw import lines
from distrec.data.raw.layout import Raw, no_items
from distrec.knobs import Data


def files(config: Data) -> list[Path]:
    if config.split == "given" and config.path is not None and config.path.is_dir():
        return [*given.files(config.path).values(), *([config.items] if config.items else [])]
    if config.path is None or not config.path.is_file():
        raise ValueError(
            f"data.path={config.path}: no such file; a table source needs one CSV, TSV, Parquet or JSONL file"
        )
    return [config.path, *([config.items] if config.items else [])]


def read(config: Data) -> Raw:
    """Any CSV, TSV, Parquet or JSONL file with named columns (`data.columns`)."""
    paths = files(config)
    rest = [paths.pop()] if config.items else []
    names = config.columns
    if len({names.user, names.item, names.time}) < 3:
        raise ValueError("data.columns: user, item and time are three different columns")
    read = [_interactions(path, config, part) for path, part in zip(paths, _parts(paths), strict=True)]
    ticks = max(ticks for _, ticks in read)
    table = pl.concat(table.with_columns(pl.col("time") * (ticks // own)) for table, own in read)
    items = no_items()
    if rest:
        items = _open(rest[0], [names.item_key]).drop("line").rename({names.item_key: "item"})
        items = items.select(_as_text(items[name]) for name in items.columns)
    return Raw(table, items, [*paths, *rest], ticks=ticks)


def _parts(paths: list[Path]) -> list[str]:
    """The part that each file holds, of a split that comes as three files; nothing for one file."""
    return list(given.PARTS) if len(paths) > 1 else [""]


def _interactions(path: Path, config: Data, part: str) -> tuple[pl.DataFrame, int]:
    """(user, item, time, of a split that comes with the data also the part; how many times make a second)."""
    names = config.columns
    needed = {names.user: "user", names.item: "item", names.time: "time"}
    if config.split == "given" and not part:
        needed[names.split] = "split"
    table = _open(path, list(needed)).rename(needed)
    time_, ticks = _ticks(table, path, names.time_unit)
    table = table.with_columns(pl.col("user", "item").cast(pl.String), time_)
    if part:
        table = table.with_columns(split=pl.lit(part))
        for name in ("user", "item"):  # here, where the file is known
            nothing = pl.col(name).is_null() | (pl.col(name).str.len_bytes() == 0)
            lines.require(table, name, nothing, path, "is missing or empty")
    return table.with_columns(given.parts(table, path)) if config.split == "given" else table, ticks


def _as_text(column: pl.Series) -> pl.Series:
    """Any attribute as text; lists are joined by a bar."""
    if isinstance(column.dtype, pl.List):
        column = column.list.eval(pl.element().cast(pl.String)).list.join("|")
    return column.cast(pl.String).fill_null("")


def _open(path: Path, needed: list[str]) -> pl.DataFrame:
    """The whole table for item attributes, the needed columns for interactions, plus `line`."""
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1]
    try:
        match kind:
            case "parquet":
                scan = pl.scan_parquet(path)
            case "csv":
                scan = pl.scan_csv(path, infer_schema=False)
            case "tsv":
                scan = pl.scan_csv(path, separator="\t", infer_schema=False, quote_char=None)
            case "jsonl" | "json" | "ndjson":
                if len(needed) > 1:
                    return lines.read_json_lines(path, dict.fromkeys(needed, pl.String))
                scan = pl.scan_ndjson(path, infer_schema_length=None)
            case _:
                raise ValueError(
                    f"{path}: .{kind} is not known; a table is .csv, .tsv, .parquet or .jsonl (and .gz of the texts)"
                )
        have = scan.collect_schema().names()
        if absent := [name for name in needed if name not in have]:
            raise ValueError(f"{path}, line 1: no column {absent[0]!r}; found: {', '.join(have)} (set data.columns)")
        keep = needed if len(needed) > 1 else have
        return (
            scan.select(keep).with_row_index("line", offset=1 if kind == "parquet" else 2).collect(engine="streaming")
        )
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from None
    except OSError as error:  # a damaged gzip stream
        raise ValueError(f"{path}: {error}; fetch the file again") from None


def _ticks(table: pl.DataFrame, path: Path, unit: str) -> tuple[pl.Series, int]:
    """The time column as whole numbers, and how many of them make a second; from numbers, dates or ISO texts."""
    column = table["time"]
    if column.dtype == pl.String:
        numbers = column.cast(pl.Float64, strict=False)
        dates = column.str.to_datetime(strict=False, time_unit="ms", time_zone="UTC")
        parsed = numbers if numbers.null_count() <= dates.null_count() else dates
        unread = pl.col("parsed").is_null() & pl.col("time").is_not_null()
        lines.require(table.with_columns(parsed=parsed), "time", unread, path, "is neither a number nor an ISO date")
        column = parsed
    if column.dtype in (pl.Date, pl.Datetime):
        return column.cast(pl.Datetime("us")).dt.epoch("us").rename("time"), 10**6
    if not column.dtype.is_numeric():
        raise ValueError(f"{path}: the time column holds {column.dtype}; give epoch numbers, dates or ISO texts")
    ticks = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    if column.dtype.is_float() and ticks < 10**6:
        column, ticks = column * (10**6 // ticks), 10**6
    return column.cast(pl.Int64, strict=False).rename("time"), ticks
