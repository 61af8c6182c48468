"""Any CSV, TSV, Parquet or JSONL file with named columns (`data.columns`)."""

from pathlib import Path

import polars as pl

from distrec.data.raw import lines, times
from distrec.data.raw.layout import Raw, no_items
from distrec.knobs import Data


def files(config: Data) -> list[Path]:
    if config.path is None or not config.path.is_file():
        raise ValueError(
            f"data.path={config.path}: no such file; a table source needs one CSV, TSV, Parquet or JSONL file"
        )
    return [config.path, *([config.items] if config.items else [])]


def read(config: Data) -> Raw:
    """Any CSV, TSV, Parquet or JSONL file with named columns (`data.columns`)."""
    path, *rest = files(config)
    names = config.columns
    if len({names.user, names.item, names.time}) < 3:
        raise ValueError("data.columns: user, item and time are three different columns")
    table = _open(path, [names.user, names.item, names.time])
    table = table.rename({names.user: "user", names.item: "item", names.time: "time"})
    timed = times.read(table, path, config)
    items = no_items()
    if rest:
        items = _open(rest[0], [names.item_key]).drop("line").rename({names.item_key: "item"})
        items = items.select("item", *(_as_text(items[name]) for name in items.columns if name != "item"))
    return Raw(timed.table, items, [path, *rest], timed.dropped, timed.ticks)


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
