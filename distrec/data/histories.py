"""Histories of any users, known or new: a file of raw item ids → numbered sequences → batches.

Shapes: U users, N items of all histories, B users in a batch, T positions (left-padded).
"""

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from datasets import Dataset
from jaxtyping import Int

from distrec import knobs
from distrec.data.batches import Batch
from distrec.data.files import opening, paths
from distrec.data.files.paths import Part
from distrec.data.files.text import Text
from distrec.data.prepared import Prepared
from distrec.data.raw import sources
from distrec.runtime import log

_LOG = knobs.Data(source="table")  # the names of a log's columns where no run says others


@dataclass(frozen=True)
class Histories:
    """User u has the items start[u] … start[u + 1] − 1, oldest first; `number` is −1 where the training data lack them."""

    user: list[str]
    number: Int[np.ndarray, " U"]
    item: Int[np.ndarray, " N"]
    start: Int[np.ndarray, " U1"]

    def __len__(self) -> int:
        return len(self.user)

    def batch(self, rows: slice, max_len: int | None = None) -> Batch:
        """The last max_len items of some users, all if None, left-padded to the longest."""
        begin, end = self.start[:-1][rows], self.start[1:][rows]
        begin = begin if max_len is None else np.maximum(begin, end - max_len)
        place = end[:, None] + np.arange(-int((end - begin).max()), 0)
        is_item = place >= begin[:, None]
        items = torch.from_numpy(np.where(is_item, self.item[np.where(is_item, place, 0)], 0))
        nothing = torch.zeros(items.shape, dtype=torch.bool)
        return Batch(
            torch.from_numpy(self.number[rows]), items, torch.from_numpy(is_item), torch.zeros_like(items), nothing
        )


def known(data: Prepared) -> Histories:
    """All that every user of the data ever did, the validation and test items included: what to offer them next."""
    return Histories(list(data.users["raw"]), np.arange(data.n_users), np.array(data.item, np.int64), data.start)


def read(
    path: Path, data: Prepared, unknown: Literal["refuse", "drop"] = "refuse", config: knobs.Data = _LOG
) -> Histories:
    """Histories from any table (CSV, TSV, Parquet, JSON lines; packed, or a folder of parts), in one of two forms:

    one row a user, with `user` and `items`, a list of raw item ids (in CSV separated by blanks), oldest first; or one
    row an interaction, as a log has them, in the columns that `config` names, and in the order of their times.

    `unknown`: what to do about items that the catalogue lacks.

    Raises: ValueError, one line, naming the file, and the user and item that are wrong.
    """
    parts = paths.parts(path, "histories")
    if _is_log(parts[0], config):
        table = _open_log(path, parts[0], config)
    else:
        table = pl.concat([_open(part, config) for part in parts])
    if not len(table):
        raise ValueError(f"{path} holds no history")
    nameless = table["user"].is_null() | table["items"].list.eval(pl.element().is_null()).list.any().fill_null(False)
    if nameless.any():
        raise ValueError(f"{path}: row {int(nameless.arg_max() or 0) + 1} has a user or an item that is null")
    flat = table.with_row_index("row").explode("items").drop_nulls("items")
    flat = flat.join(_numbered(data.items, "items", "item"), on="items", how="left", maintain_order="left")
    missing = flat.filter(pl.col("item").is_null())
    if len(missing):
        first = missing.row(0, named=True)
        told = f"{len(missing):,} of {len(flat):,} items are not in the catalogue, the first of them {first['items']!r} of user {first['user']!r}"
        if unknown == "refuse":
            raise ValueError(f"{path}: {told} (unknown=drop reads the others)")
        log(f"{path}: {told}; they are left out")
        flat = flat.drop_nulls("item")
    length = np.bincount(flat["row"].to_numpy(), minlength=len(table))
    if len(empty := np.flatnonzero(length == 0)):
        user = table["user"][int(empty[0])]
        raise ValueError(f"{path}: {len(empty):,} users have an empty history, the first of them {user!r}")
    if len(twice := table.filter(pl.col("user").is_duplicated())):
        log(f"{path}: {len(twice):,} rows share their user with another, the first {twice['user'][0]!r}: a list each")
    number = table.join(_numbered(data.users, "user", "number"), on="user", how="left", maintain_order="left")["number"]
    start = np.concatenate([[0], np.cumsum(length)])
    return Histories(
        table["user"].to_list(), number.fill_null(-1).to_numpy(writable=True), flat["item"].to_numpy(), start
    )


def _numbered(names: Dataset, name: str, number: str) -> pl.DataFrame:
    """The raw ids of users or items beside their numbers."""
    table = pl.DataFrame(pl.from_arrow(names.data.table.select(["raw"])))
    return table.select(pl.col("raw").cast(pl.String).alias(name), pl.arange(len(names), dtype=pl.Int64).alias(number))


def _is_log(part: Part, config: knobs.Data) -> bool:
    names = opening.names(part, config)
    return "items" not in names and config.columns.item in names


def _open_log(path: Path, part: Part, config: knobs.Data) -> pl.DataFrame:
    """Histories of a log: the users in the order in which they first appear."""
    names, columns = opening.names(part, config), config.columns
    if columns.time not in names:
        columns = replace(columns, time=None)
        log(f"{path} has no column {config.columns.time!r}: its rows are taken to be in order")
    rows = sources.read(
        replace(config, source="table", path=path, items=None, columns=columns, where=None, split="leave_one_out")
    ).interactions
    if "time" in rows.columns:
        rows = rows.with_row_index("row").sort("time", maintain_order=True)
        first = rows.group_by("user").agg(pl.col("row").min(), items="item").sort("row")
        return first.select("user", "items")
    return rows.group_by("user", maintain_order=True).agg(items="item")


def _open(part: Part, config: knobs.Data) -> pl.DataFrame:
    path = part.path
    if paths.kind(path) == "jsonl":
        return _open_lines(path, config.encoding)
    table, line = opening.read(part, ["user", "items"], ["user"], config)
    if paths.kind(path) != "parquet":
        listed = table.with_columns(line).filter(pl.col("items").str.contains(r"^\s*[\[(\"']"))
        if len(listed):
            raise ValueError(
                f"{path}, line {listed['line'][0]}: items {listed['items'][0]!r} look like a written list; separate the "
                "ids by blanks, or write JSON lines"
            )
        return table.with_columns(pl.col("items").str.strip_chars().str.split(" "))
    user, items = table.schema["user"], table.schema["items"]
    if isinstance(items, pl.Array):
        items = pl.List(items.inner)
        table = table.with_columns(pl.col("items").arr.to_list())
    if not isinstance(items, pl.List) or not _is_name(items.inner):
        raise ValueError(f"{path}: items is a list of item ids, got {items}")
    if not _is_name(user):
        raise ValueError(f"{path}: user is a name or a number, got {user}")
    return table.select(pl.col("user").cast(pl.String), pl.col("items").cast(pl.List(pl.String)))


def _open_lines(path: Path, encoding: str) -> pl.DataFrame:
    """Each line judged by itself: a table's common type would turn numbers, truths and objects into names."""
    users: list[str | None] = []
    lists: list[list[str | None]] = []
    with io.BufferedReader(Text(path, encoding)) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode(), object_pairs_hook=_once)
                users.append(_name(row["user"]))
                if not isinstance(row["items"], list):
                    raise ValueError("items is a list of item ids")
                lists.append([_name(item) for item in row["items"]])
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                told = f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
                raise ValueError(
                    f'{path}, line {number}: not like {{"user": "u1", "items": ["i7", "i3"]}}: {told}'
                ) from None
    schema = {"user": pl.String, "items": pl.List(pl.String)}
    return pl.DataFrame({"user": users, "items": lists}, schema=schema)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(row := dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return row


def _name(value: Any) -> str | None:
    if isinstance(value, bool) or not (value is None or isinstance(value, str | int)):
        raise ValueError(f"an id is a text or a whole number, got {value!r}")
    if value is not None:
        str(value).encode()  # half a surrogate pair is no text
    return None if value is None else str(value)


def _is_name(kind: Any) -> bool:
    return kind in (pl.String, pl.Null, pl.Categorical, pl.Enum) or kind.is_integer()
