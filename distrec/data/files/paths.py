"""What a path names: one file or a folder of parts, of which kind, in which packing.  A path is never a pattern."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import polars as pl

from distrec.data.files import text
from distrec.runtime import log

_KINDS = {
    **dict.fromkeys(("parquet", "pq"), "parquet"),
    **dict.fromkeys(("jsonl", "ndjson", "json"), "jsonl"),
    "csv": "csv",
    "tsv": "tsv",
}
_UNPACK = {
    "zip": "unzip {0}",
    "bz2": "bunzip2 {0}",
    "xz": "unxz {0}",
    "7z": "7z x {0}",
    "tar": "tar xf {0}",
    "tgz": "tar xzf {0}",
}
# folders whose parts are alive or deleted as a log beside them says
_LOGS = {"_delta_log/*": "a Delta", ".hoodie/*": "a Hudi", "metadata/*.metadata.json": "an Iceberg"}
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Part:
    """One file of a table.  `values` are what a hive folder's name says of all its rows (`day=2024-01-01/`).

    `subset`: train, valid or test, where a split comes as files of these names.
    """

    path: Path
    values: dict[str, str | None] = field(default_factory=dict)
    subset: str | None = None


def kind(path: Path) -> str:
    """parquet, csv, tsv or jsonl, from the ending in any case; `.gz` and `.zst` behind it are packings of texts.

    Raises: ValueError for any other ending, with how to unpack an archive.
    """
    name, packed = path.name.lower(), path.name.lower().endswith((".gz", ".zst"))
    ending = (name.rpartition(".")[0] if packed else name).rpartition(".")[2]
    if ending not in _KINDS and _begins_as_parquet(path):
        return "parquet"  # some warehouses write parts without an ending
    if packed and _KINDS.get(ending) == "parquet":
        raise ValueError(f"{path}: Parquet packs its columns itself; unpack the file first, and name it .parquet")
    if ending in _KINDS:
        return _KINDS[ending]
    if ending in _UNPACK:
        raise ValueError(
            f"{path}: .{ending} archives are not read; unpack it first ({_UNPACK[ending].format(path.name)}) "
            "and name the file inside"
        )
    raise ValueError(
        f"{path}: .{ending} is not known; a table is .csv, .tsv, .parquet or .jsonl (.gz and .zst of the texts), "
        "or a folder of such parts"
    )


def refuse_remote(path: Path, key: str) -> None:
    """Raises: ValueError for an address of an object store or the web, which a path cannot hold."""
    if (scheme := _REMOTE.match(str(path))) and not path.exists():
        address = f"{scheme[0]}/{str(path)[scheme.end() :].lstrip('/')}"
        raise ValueError(
            f"{key}={address}: remote paths are not read; copy it here first, and pass {key}=FILE_OR_FOLDER"
        )


def parts(path: Path, key: str) -> list[Part]:
    """The files of a table: `path` itself, or a folder's parts in the natural order of their names (part-2, part-10).

    Hidden files and those that begin with an underscore (_SUCCESS, _metadata) are no parts.

    Raises: ValueError, beginning with `key`, for an address, for nothing there, for parts of several kinds or of
    different hive folders, and for a Delta, Hudi or Iceberg table, whose folder also holds parts that are deleted.
    """
    refuse_remote(path, key)
    if path.is_file():
        kind(path)
        return [Part(path)]
    if not path.is_dir():
        raise ValueError(f"{key}={path}: no such file or folder")
    for pattern, table in _LOGS.items():
        if any(path.glob(pattern)):
            raise ValueError(
                f"{key}={path}: this is {table} table, and only its log knows which parts are alive; "
                "export it to plain Parquet first"
            )
    files = below(path)
    if not files:
        raise ValueError(f"{key}={path}: the folder holds no part (part-0.parquet, day=2024-01-01/part-0.parquet, …)")
    kinds = {kind(file): file for file in reversed(files)}
    if len(kinds) > 1:
        raise ValueError(
            f"{key}={path}: a folder holds the parts of one table, but {' and '.join(f.name for f in kinds.values())} "
            f"are of several kinds; set {key} to one file, or move the others away"
        )
    members = [Part(file, _hive(file.relative_to(path))) for file in files]
    for part in members:
        if part.values.keys() != members[0].values.keys():
            raise ValueError(
                f"{key}={path}: {part.path.relative_to(path)} and {members[0].path.relative_to(path)} do not lie in "
                "folders of the same columns (name=value); move one of them away"
            )
    return members


def below(folder: Path) -> list[Path]:
    """All files of a folder and of those in it, in the natural order of their names, without the hidden ones.

    Raises: ValueError for a link that leads nowhere, or to a folder that it lies in.
    """
    files = [Path(place, name) for place, names in _walk(folder) for name in names]
    if lost := [file for file in files if not file.exists()]:
        raise ValueError(f"{lost[0]}: a link to {os.readlink(lost[0])}, which is not there; remove it, or mend it")
    return sorted(files, key=lambda file: _natural(file.relative_to(folder).as_posix()))


def filled(members: list[Part], path: Path) -> list[Part]:
    """The parts of a table that are not empty, with a word on those of no bytes; all of them where none holds any."""
    empty = {part.path: None for part in members if kind(part.path) != "parquet" and text.is_empty(part.path)}
    if not 0 < len(empty) < len(members):
        return members
    log(
        f"{path}: {len(empty):,} of {len(members):,} parts are empty files and are skipped (the first: {next(iter(empty)).name})"
    )
    return [part for part in members if part.path not in empty]


def read_parquet(path: Path) -> pl.DataFrame:
    """The whole of one Parquet file, whatever characters are in its name."""
    return pl.read_parquet(path, glob=False, hive_partitioning=False)


def scan_parquet(path: Path) -> pl.LazyFrame:
    """One Parquet file, whatever characters are in its name, of which only what is used will be read."""
    return pl.scan_parquet(path, glob=False, hive_partitioning=False)


def _begins_as_parquet(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _walk(path: Path) -> list[tuple[str, list[str]]]:
    levels = []
    for folder, below, names in os.walk(path, followlinks=True):
        below[:] = [name for name in below if name[0] not in "._"]
        for link in (Path(folder, name) for name in below if Path(folder, name).is_symlink()):
            if Path(folder).resolve().is_relative_to(link.resolve()):
                raise ValueError(f"{link}: a link to {os.readlink(link)}, a folder that it lies in; remove it")
        levels.append((folder, [name for name in names if name[0] not in "._"]))
    return levels


def _natural(name: str) -> list[tuple[str, int]]:
    """Numbers in a name count as numbers; equal numbers in other spellings are told apart by their text."""
    return [(text, int(number or 0)) for text, number in re.findall(r"([^0-9]*)([0-9]*)", name)] + [(name, 0)]


def _hive(place: Path) -> dict[str, str | None]:
    pairs = [folder.partition("=") for folder in place.parts[:-1]]
    return {unquote(name): None if value == _NO_VALUE else unquote(value) for name, equals, value in pairs if equals}
