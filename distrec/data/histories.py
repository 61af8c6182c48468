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
from distrec.data.raw import ids, sources, where
from distrec.runtime import brief, log

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
    row an interaction, as a log has them, in the columns that `config` names, and in the order of their times, the users
    in the order of their first ones.

    `unknown`: what to do about items that the catalogue lacks.

    Raises: ValueError, one line, naming the file, and the user and item that are wrong.
    """
    parts = paths.filled(paths.parts(path, "histories"), path)
    if _is_log(parts[0], config):
        table = _open_log(path, parts[0], config)
    else:
        table = pl.concat([_named(_open(part, config), part.path) for part in parts])
    if not len(table):
        raise ValueError(f"{path} holds no history")
    flat = table.with_row_index("row").explode("items").drop_nulls("items")
    flat = flat.join(_numbered(data.items, "items", "item"), on="items", how="left", maintain_order="left")
    missing = flat.filter(pl.col("item").is_null())
    if len(missing):
        first = missing.row(0, named=True)
        told = f"{len(missing):,} of {len(flat):,} items are not in the catalogue, the first of them {brief(first['items'])} of user {brief(first['user'])}"
        if unknown == "refuse":
            raise ValueError(f"{path}: {told} (unknown=drop reads the others)")
        log(f"{path}: {told}; they are left out")
        flat = flat.drop_nulls("item")
    length = np.bincount(flat["row"].to_numpy(), minlength=len(table))
    if len(empty := np.flatnonzero(length == 0)):
        user = table["user"][int(empty[0])]
        raise ValueError(f"{path}: {len(empty):,} users have an empty history, the first of them {brief(user)}")
    if len(twice := table.filter(pl.col("user").is_duplicated())):
        log(
            f"{path}: {len(twice):,} rows share their user with another, the first {brief(twice['user'][0])}: a list each"
        )
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
    """Histories of a log: the users in the order of their first interactions."""
    names, columns = opening.names(part, config), config.columns
    if columns.time not in names:
        columns = replace(columns, time=None)
        log(f"{path} has no column {config.columns.time!r}: its rows are taken to be in order")
    absent = [condition.column for condition in where.parse(config.where) if condition.column not in names]
    if absent:
        log(f"{path} has no column {absent[0]!r}: data.where ({config.where}) is not applied, every row counts")
    rows = sources.read(
        replace(
            config, source="table", path=path, items=None, columns=columns, split="leave_one_out",
            where=None if absent else config.where,
        )
    ).interactions  # fmt: skip
    if "time" in rows.columns:
        rows = rows.sort("time", maintain_order=True)
    return rows.group_by("user", maintain_order=True).agg(items="item")


def _named(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    """user and items as text, by the rule of every other table.   Raises: ValueError naming the line of what is no id."""
    flat = table.filter(pl.col("items").list.len() > 0).explode("items")
    lists = (
        flat.select("line", items=ids.complete(flat, "items", path)).group_by("line", maintain_order=True).agg("items")
    )
    users = table.select("line", user=ids.complete(table, "user", path))
    return users.join(lists, on="line", how="left", maintain_order="left").select("user", "items")


def _open(part: Part, config: knobs.Data) -> pl.DataFrame:
    """user, items (lists) and line, with the types of the file."""
    path = part.path
    if paths.kind(path) == "jsonl":
        return _open_lines(path, config.encoding)
    table, line = opening.read(part, ["user", "items"], ["user"], config)
    table = table.with_columns(line)
    if paths.kind(path) != "parquet":
        listed = table.filter(pl.col("items").str.contains(r"^\s*[\[(\"']"))
        if len(listed):
            raise ValueError(
                f"{path}, line {listed['line'][0]}: items {brief(listed['items'][0])} look like a written list; separate the "
                "ids by blanks, or write JSON lines"
            )
        return table.with_columns(pl.col("items").str.extract_all(r"[^ \t]+"))
    if isinstance(table.schema["items"], pl.Array):
        table = table.with_columns(pl.col("items").arr.to_list())
    if not isinstance(kind := table.schema["items"], pl.List):
        raise ValueError(f"{path}: items is a list of item ids, got {kind}")
    return table


def _open_lines(path: Path, encoding: str) -> pl.DataFrame:
    """Each line judged by itself: a table's common type would turn numbers, truths and objects into names."""
    users: list[str | None] = []
    lists: list[list[str | None]] = []
    places: list[int] = []
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
                places.append(number)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                told = f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
                raise ValueError(
                    f'{path}, line {number}: not like {{"user": "u1", "items": ["i7", "i3"]}}: {told}'
                ) from None
    schema = {"user": pl.String, "items": pl.List(pl.String), "line": pl.UInt32}
    return pl.DataFrame({"user": users, "items": lists, "line": places}, schema=schema)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(row := dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return row


def _name(value: Any) -> str | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as in a column of floats
    if isinstance(value, bool) or not (value is None or isinstance(value, str | int)):
        raise ValueError(f"an id is a text or a whole number, got {brief(value)}")
    if value is not None:
        str(value).encode()  # half a surrogate pair is no text
    return None if value is None else str(value)
