"""Any table with named columns (`data.columns`): CSV, TSV, Parquet or JSON lines, packed or not, a file or its parts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import polars as pl

from distrec.data.files import opening, paths
from distrec.data.files.paths import Part
from distrec.data.preparation import given
from distrec.data.raw import ids, lines, times, where
from distrec.data.raw.layout import Raw, no_items
from distrec.knobs import Data
from distrec.runtime import log, several

_WHERE = "where "  # before the name of a column that data.where reads


def files(config: Data) -> list[Path]:
    """Every file that `read` opens.   Raises: ValueError naming a key that is wrong, or what is no file."""
    opening.check(config)
    where.parse(config.where)
    if config.path is None:
        raise ValueError(
            "data.path: a table source needs one CSV, TSV, Parquet or JSONL file, or a folder of its parts"
        )
    with _keys_of_items():
        opening.check(_as_items(config))
    items = paths.parts(config.items, "data.items") if config.items else []
    return [part.path for part in (*_members(config), *items)]


def read(config: Data) -> Raw:
    """The interactions and attributes that `data.path`, `data.items` and `data.columns` name.

    Raises: ValueError naming file, line and remedy.
    """
    files(config)
    assert config.path is not None
    members = _members(config)
    path = members[0].path if len(members) == 1 else config.path
    if members[0].subset:
        given.tell_unread(path, members, config.items)
    table, dropped = _interactions(paths.filled(members, path), path, config)
    raw = Raw(table, no_items(), dropped=dropped)
    if config.columns.time is not None:
        timed = times.read(raw.interactions, path, config)
        raw.interactions, raw.ticks, raw.dropped = timed.table, timed.ticks, raw.dropped | timed.dropped
    if config.items:
        raw.items = read_items(config.items, config.columns.item_key, config)
    raw.files = [path, *([config.items] if config.items else [])]
    return raw


def read_items(path: Path, key: str, config: Data) -> pl.DataFrame:
    """The attributes of items as text, "" where there is none; first `item`, the ids, which is the column `key`.

    Raises: ValueError naming file and line.
    """
    frames = []
    for part in paths.filled(paths.parts(path, "data.items"), path):
        with _keys_of_items():
            table, line = opening.read_all(part, key, _as_items(config))
        if table.schema[key] != pl.String:
            table = table.with_columns(ids.read_column(table.select(key), key, part.path).alias(key))
        if config.missing_ids == "refuse":
            keys = table.select(pl.col(key).alias("item"))
            keys = keys if paths.kind(part.path) == "parquet" else keys.with_columns(line)
            missing = pl.col("item").fill_null("") == ""
            lines.require(keys, "item", missing, part.path, f"(column {key!r}) is missing or empty")
        frames.append(table)
    table = pl.concat(frames, how="diagonal") if len(frames) > 1 else frames[0]
    attributes = {name: name for name in table.columns if name != key}
    if "item" in attributes:
        attributes["item"] = next(name for name in ("item_", "item__", "item___") if name not in attributes)
        if "{item}" in config.text:
            raise ValueError(
                f"data.text={config.text!r}: {path} has a column 'item' besides its id {key!r}; write "
                f"{{{attributes['item']}}} for that column"
            )
        log(f"{path}: the column 'item' is the attribute {attributes['item']!r}, since the id ({key}) is called item")
    return table.select(
        pl.col(key).alias("item"), *(pl.col(old).fill_null("").alias(new) for old, new in attributes.items())
    )


def _as_items(config: Data) -> Data:
    """The keys with which the item table is read."""
    separator = config.separator if config.items_separator is None else config.items_separator
    return replace(config, separator=separator, encoding=config.items_encoding or config.encoding)


@contextmanager
def _keys_of_items() -> Iterator[None]:
    """Let an error of the item table name the keys that are about it alone."""
    try:
        yield
    except ValueError as error:
        told = str(error).replace("data.separator", "data.items_separator")
        raise ValueError(told.replace("data.encoding", "data.items_encoding")) from None


def _members(config: Data) -> list[Part]:
    """The files of a log in order, with the subset that each one holds where a split comes as files."""
    assert config.path is not None
    subsets = given.members(config.path) if config.split == "given" and config.path.is_dir() else []
    return subsets or paths.parts(config.path, "data.path")


def _roles(config: Data, has_subsets: bool) -> dict[str, str]:
    """The column of the file for each column that is read of it.   Raises: ValueError where one has two roles."""
    columns = config.columns
    roles = {"user": columns.user, "item": columns.item}
    if columns.time is not None:
        roles["time"] = columns.time
    if config.split == "given" and not has_subsets:
        roles["split"] = columns.split
    if len(set(roles.values())) < len(roles):
        raise ValueError(f"data.columns: {', '.join(roles)} are {len(roles)} different columns")
    return roles


def _check_roles(part: Part, roles: dict[str, str], known: Sequence[str]) -> None:
    """Raises: ValueError for a column of times or of parts that the first file lacks, with what else may say it."""
    remedies = {
        "time": "set data.columns.time=NAME, or data.columns.time=null if the rows are in order",
        "split": "set data.columns.split=NAME, or name the files of a folder train, valid and test",
    }
    for role, remedy in remedies.items():
        is_absent = role in roles and roles[role] not in known and paths.kind(part.path) != "jsonl"
        if is_absent and roles["item"] in known:
            raise ValueError(f"{part.path}: no column {roles[role]!r}; found: {several(known)} ({remedy})")


def _interactions(members: Sequence[Part], path: Path, config: Data) -> tuple[pl.DataFrame, dict[str, int]]:
    """(user, item and time as they stand in the file, `split` as numbers, `line`, and `part` if there are several; what was dropped)."""
    columns, conditions = config.columns, where.parse(config.where)
    roles = _roles(config, members[0].subset is not None)
    wanted = list(dict.fromkeys([*roles.values(), *(condition.column for condition in conditions)]))
    known = opening.names(members[0], config)
    _check_roles(members[0], roles, known)
    where.tell_unused(known, wanted, path)
    frames, dropped, seen, empty = [], {}, set(), set(wanted)
    for part in members:
        table, line = opening.read(part, wanted, [columns.user, columns.item], config)
        empty -= {name for name in empty if table[name].null_count() < table.height}
        table = table.select(
            **{role: pl.col(name) for role, name in roles.items()},
            **{_WHERE + condition.column: pl.col(condition.column) for condition in conditions},
        ).with_columns(line)
        table, counts, values = where.keep(table, conditions, part.path, _WHERE)
        seen |= values
        dropped = {rule: dropped.get(rule, 0) + counts.get(rule, 0) for rule in {**dropped, **counts}}
        subset = [pl.lit(part.subset).alias("split")] if part.subset else []
        frames.append(table.select(*roles, *subset, "line"))
    if empty:  # JSON lines leave out what is null: a field is absent where no part has it
        fields = dict.fromkeys(name for part in members for name in opening.names(part, config))
        opening.refuse_absent(path, [name for name in wanted if name in empty], list(fields))
    table = _joined(frames, members) if len(members) > 1 else frames[0]
    where.tell_absent(conditions, seen, path)
    where.require_some(table.height, conditions, dropped, path)
    return table.with_columns(given.parts(table, path)) if config.split == "given" else table, dropped


def _joined(frames: Sequence[pl.DataFrame], members: Sequence[Part]) -> pl.DataFrame:
    """One table of all parts, `part` beside `line`.   Raises: ValueError for columns whose types do not go together."""
    place = pl.Enum([str(part.path) for part in members])
    for name in frames[0].columns:
        kinds = {frame.schema[name]: part.path for frame, part in zip(frames, members, strict=True)}
        kinds.pop(pl.Null(), None)
        first = next(iter(kinds), pl.Null())
        odd = next((kind for kind in kinds if kind != first and not (kind.is_integer() and first.is_integer())), None)
        if odd is not None:
            raise ValueError(
                f"{kinds[odd]}: its {name} column is {odd}, but {first} in {kinds[first].name}; write all parts with one type"
            )
        if len(kinds) > 1:
            wide = pl.Int128 if pl.UInt64 in kinds else pl.Int64
            frames = [frame.with_columns(pl.col(name).cast(wide)) for frame in frames]
    parts = [
        frame.with_columns(part=pl.lit(str(part.path), dtype=place))
        for frame, part in zip(frames, members, strict=True)
    ]
    return pl.concat(parts, how="vertical_relaxed", rechunk=False)
