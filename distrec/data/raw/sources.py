"""Raw formats in, one layout out: interactions (user, item, time) in file order, and item attributes.

Every reader returns `Raw`.  Users and items are the raw ids as text; `read` gives `time` in epoch microseconds,
so that nothing is cut off before it is ordered.
"""

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from distrec.data.files import delimited
from distrec.data.raw import download, ids, lines, synthetic, table, times, where
from distrec.data.raw.layout import Raw, no_items
from distrec.data.raw.table import read_items
from distrec.data.raw.values import join, texts
from distrec.knobs import Data
from distrec.runtime import brief, several


def read(config: Data) -> Raw:
    """The interactions and items that `config` names.

    Raises: ValueError naming file, line and remedy; for missing files, each one with where to get it.
    """
    try:
        raw = _READERS[config.source](config)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{config.path}: {str(error).splitlines()[0]}") from None
    if config.where and config.source != "table":
        raw.interactions, dropped = where.select(raw.interactions, config.where, raw.files[0] if raw.files else Path())
        raw.dropped |= dropped
    if config.source != "synthetic":
        raw = _cleaned(raw, config)
    kept = [name for name in ("user", "item", "time", "split") if name in raw.interactions.columns]
    raw.interactions = raw.interactions.select(kept)
    raw = _in_microseconds(raw)
    if raw.interactions.is_empty():
        raise ValueError(f"{config.path}: no interaction in it")
    join.check(raw, config)
    return raw


def input_files(config: Data) -> list[Path]:
    """Every file that `read` will open (downloaded first where a catalogue is named and files are absent)."""
    return [] if config.source == "synthetic" else [path for path in _FILES[config.source](config) if path]


def _find(config: Data, *names: str) -> Path:
    """The first of `names` in the source's folder, plain or .gz; downloads the named official catalogue."""
    folder = config.path or download.folder(config)
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return download.fetch(config, folder, names)


def _movielens_files(config: Data) -> list[Path]:
    """Raises: ValueError for the CSV files of 20M, 25M, 32M and latest, with the words that read them as a table."""
    folder = config.path or download.folder(config)
    folder = folder.parent if folder.is_file() else folder
    if (folder / "ratings.csv").is_file() and not any((folder / name).is_file() for name in ("u.data", "ratings.dat")):
        places = shlex.join([f"data.path={folder / 'ratings.csv'}", f"data.items={folder / 'movies.csv'}"])
        columns = " ".join(f"data.columns.{role}=movieId" for role in ("item", "item_key"))
        raise ValueError(
            f"{folder} holds the ratings.csv of MovieLens 20M and later: read it by data.source=table {places} "
            f"data.columns.user=userId {columns} data.columns.time=timestamp"
        )
    ratings = _find(config, "u.data", "ratings.dat")
    items = "u.item" if ratings.name.startswith("u.data") else "movies.dat"
    return [ratings, config.items or _find(config, items)]


def _movielens(config: Data) -> Raw:
    """MovieLens-100K (u.data, u.item) and 1M (ratings.dat, movies.dat); both name their movies in latin-1.

    MovieLens-10M has the files of 1M in UTF-8, and so have copies that were saved again.
    """
    ratings, movies = _movielens_files(config)
    is_100k = ratings.name.startswith("u.data")
    names, separator = ["user", "item", "rating", "time"], "\t" if is_100k else "::"
    table = lines.read_delimited(ratings, names, separator, filled=_filled(config, "user", "item"))
    coding = texts.encoding(movies)
    if is_100k:
        names = ["item", "title", *(f"c{i}" for i in range(22))]
        items = lines.read_delimited(movies, names, "|", encoding=coding, filled=["item"])
        genres = [pl.when(pl.col(f"c{i + 3}") == "1").then(pl.lit(name)) for i, name in enumerate(_GENRES)]
        items = items.with_columns(category=pl.concat_str(genres, separator="|", ignore_nulls=True))
    else:
        items = lines.read_delimited(movies, ["item", "title", "category"], "::", encoding=coding, filled=["item"])
    year = pl.col("title").str.extract(r"\((\d{4})\)\s*$").fill_null("")
    title = pl.col("title").str.replace(r"\s*\(\d{4}\)\s*$", "")
    items = items.select("item", title=title, year=year, category=pl.col("category").fill_null(""))
    timed = times.read(table, ratings, config, unit="s")
    return Raw(timed.table, items, [ratings, movies], timed.dropped, timed.ticks)


# fmt: off
_GENRES = [  # u.genre, in its order
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
]
# fmt: on


def _amazon_files(config: Data) -> list[Path]:
    path = config.path or download.folder(config)
    if path.is_file():
        return [path, *([config.items] if config.items else [])]
    if config.catalogue:
        return download.fetch_all(config, path)
    found = sorted(p for p in path.glob("*") if p.name.removesuffix(".gz").endswith((".json", ".jsonl", ".csv")))
    reviews = [p for p in found if not p.name.startswith("meta_")]
    metadata = [config.items] if config.items else [p for p in found if p.name.startswith("meta_")]
    if not reviews:
        return download.fetch_all(config, path)
    for files, key in ((reviews, "data.path"), (metadata, "data.items")):
        if len(files) > 1:
            raise ValueError(
                f"{path} holds {len(files)} candidates ({files[0].name}, {files[1].name}…): set {key} to one"
            )
    return [*reviews, *metadata]


# field of the user, of the item, of the time, and the unit of the latter
_AMAZON = {
    "2014 and 2018": ("reviewerID", "asin", "unixReviewTime", "s"),
    "2023": ("user_id", "parent_asin", "timestamp", "ms"),
}


def _amazon(config: Data) -> Raw:
    """Amazon reviews and metadata: 2014 (metadata in Python literals), 2018 (JSON) or 2023 (JSON, or ratings in CSV).

    An item of 2023 is a `parent_asin`: the products that differ in colour or size alone.
    """
    reviews, *metadata = _amazon_files(config)
    is_csv = reviews.name.removesuffix(".gz").endswith(".csv")
    style = delimited.Style(quoted=config.quoted)
    fields = delimited.header(reviews, style) if is_csv else next(lines.read_literal_lines(reviews), (1, {}))[1]
    layout = next((layout for layout in _AMAZON.values() if layout[0] in fields), None)
    if layout is None:
        raise ValueError(
            f"{reviews}, line 1: no field 'reviewerID' (Amazon 2014, 2018) and no 'user_id' (2023); found: "
            f"{several(fields)}; name the reviews' file, or set data.source=table and data.columns"
        )
    user, item, when, unit = layout
    names = [user, item, when, *(each.column for each in where.parse(config.where) if each.column in fields)]
    if is_csv:
        table, line = delimited.read(reviews, names, style)
        table = table.with_columns(line)
    else:
        kinds = dict.fromkeys(names, pl.String)
        table = lines.read_json_lines(reviews, kinds, filled=_filled(config, user, item), ids=[user, item])
    table = table.rename({user: "user", item: "item", when: "time"})
    wanted = None if config.cold_items == "keep" else set(table["item"].unique())
    items, others = _amazon_items(metadata[0], item, wanted) if metadata else (no_items(), 0)
    timed = times.read(table, reviews, config, unit=unit)
    of_items = {"item rows that join with nothing": others} if others else {}
    return Raw(timed.table, items, [reviews, *metadata], timed.dropped, timed.ticks, of_items=of_items)


def _amazon_items(path: Path, key: str, wanted: set[str] | None) -> tuple[pl.DataFrame, int]:
    """(the items that are wanted, all if None, as most of a catalogue's are in no log; how many others there are)."""
    rows, others = [], 0
    for line, record in lines.read_literal_lines(path):
        if key not in record:
            raise ValueError(f"{path}, line {line}: no {key!r}; is this the metadata of the catalogue of the reviews?")
        groups = record.get("categories") or record.get("category") or record.get("main_category") or []
        if isinstance(groups, list) and groups and isinstance(groups[0], list):  # 2014: the first of several
            groups = groups[0]
        elif isinstance(groups, str) and key == "parent_asin":
            groups = [groups]
        if not isinstance(record[key], str) or not isinstance(groups, list):
            wrong = groups if isinstance(record[key], str) else record[key]
            raise ValueError(f"{path}, line {line}: {key!r} is a text and 'category' a list; got {brief(wrong)}")
        if wanted is not None and record[key] not in wanted:
            others += 1
        else:
            rows.append(
                {
                    "item": record[key],
                    "title": texts.of(record.get("title")),
                    "brand": texts.of(record.get("brand") or record.get("store")),
                    "category": texts.of(groups),
                }
            )
    return pl.DataFrame(rows, schema=dict.fromkeys(("item", "title", "brand", "category"), pl.String)), others


def _lastfm_files(config: Data) -> list[Path]:
    return [_find(config, "user_taggedartists-timestamps.dat"), config.items or _find(config, "artists.dat")]


def _lastfm(config: Data) -> Raw:
    """HetRec-2011 LastFM: a tag given to an artist is the interaction; times are in milliseconds."""
    tagged, artists = _lastfm_files(config)
    names = {"userID": "user", "artistID": "item", "timestamp": "time"}
    table = lines.read_delimited(tagged, list(names), "\t", header=True, filled=_filled(config, "userID", "artistID"))
    items = lines.read_delimited(artists, ["id", "name"], "\t", header=True, filled=["id"])
    items = items.select(item="id", title=pl.col("name").fill_null(""))
    timed = times.read(table.rename(names), tagged, config, unit="ms")
    return Raw(timed.table, items, [tagged, artists], timed.dropped, timed.ticks)


def _sequences_files(config: Data) -> list[Path]:
    folder = config.path or download.folder(config)
    if folder.is_file():
        beside = [folder.with_name(name) for name in ("items.tsv.gz", "items.tsv")]
        return [folder, *([config.items] if config.items else [path for path in beside if path.is_file()][:1])]
    return [_find(config, "sequences.tsv"), config.items or _find(config, "items.tsv")]


def _sequences(config: Data) -> Raw:
    """One user a line: user_id, raw_user, item_ids and timestamps separated by blanks; taken as it is."""
    path, *rest = _sequences_files(config)
    names = ["user_id", "item_ids", "timestamps"]
    table = lines.read_delimited(path, names, "\t", header=True, filled=names[:2])
    lists = table.with_columns(pl.col("item_ids").str.split(" "), pl.col("timestamps").str.split(" "))
    has_time = table["timestamps"].is_not_null().any()
    users = table.with_columns(repeated=ids.as_text(table["user_id"])[0].is_duplicated())
    lines.require(users, "user_id", pl.col("repeated"), path, "stands on several lines")
    if has_time:
        absent = pl.col("timestamps").is_null()
        lines.require(table, "timestamps", absent, path, "are missing, while other users have theirs")
        differ = pl.col("item_ids").list.len() != pl.col("timestamps").list.len()
        lines.require(lists, "user_id", differ, path, "has not as many timestamps as items")
    else:
        lists = lists.drop("timestamps")
    long = lists.explode(["item_ids", "timestamps"] if has_time else ["item_ids"])
    long = long.rename({"user_id": "user", "item_ids": "item", **({"timestamps": "time"} if has_time else {})})
    lines.require(long, "item", pl.col("item") == "", path, "is an empty item id (two blanks in a row?)")
    items = no_items()
    if rest:
        items = read_items(rest[0], "item_id", replace(config, quoted=False))
        items = items.rename({"attributes": "category"}, strict=False).rename({"genres": "category"}, strict=False)
    if not has_time:
        return Raw(long, items, [path, *rest])
    timed = times.read(long, path, config, unit="s")
    return Raw(timed.table, items, [path, *rest], timed.dropped, timed.ticks)


def _cleaned(raw: Raw, config: Data) -> Raw:
    raw.interactions, missing = ids.read(raw.interactions, ["user", "item"], raw.files[0], config)
    raw.items, nameless = ids.read(raw.items, ["item"], raw.files[-1], config)
    raw.items, changes = texts.clean(raw.items)
    raw.dropped |= {"rows without user or item": missing} if missing else {}
    raw.of_items |= ({"item rows without an id": nameless} if nameless else {}) | changes
    return raw


def _in_microseconds(raw: Raw) -> Raw:
    """Times in epoch microseconds; rows that are apart by less are put in order first, as it would be lost."""
    if raw.has_time and raw.ticks > 10**6:
        step = raw.ticks // 10**6
        if (raw.interactions["time"] % step != 0).any():
            placed = raw.interactions.with_row_index("row").sort("time", maintain_order=True)
            raw.moved = int(placed.select((pl.col("row").cast(pl.Int64).diff() < 0).over("user")).to_series().sum())
            raw.interactions = placed.drop("row")
        raw.interactions = raw.interactions.with_columns(pl.col("time") // step)
    elif raw.has_time:
        raw.interactions = raw.interactions.with_columns(pl.col("time") * (10**6 // raw.ticks))
    raw.ticks = 10**6
    return raw


def _synthetic(config: Data) -> Raw:
    log = synthetic.catalogue(config.synthetic, np.random.default_rng(config.seed))
    interactions = pl.DataFrame({"user": log.user, "item": log.item, "time": log.time})
    return Raw(
        interactions.with_columns(pl.col("user", "item").cast(pl.String)),
        pl.DataFrame(log.items).with_columns(pl.col("item").cast(pl.String)),
        dropped={"bad timestamps": 0},
    )


def _filled(config: Data, *names: str) -> list[str]:
    """The fields whose lack is refused under the name that the file gives them; else the rows are dropped later."""
    return list(names) if config.missing_ids == "refuse" else []


_READERS: dict[str, Callable[[Data], Raw]] = {
    "synthetic": _synthetic,
    "sequences": _sequences,
    "movielens": _movielens,
    "amazon": _amazon,
    "lastfm": _lastfm,
    "table": table.read,
}
_FILES: dict[str, Callable[[Data], list[Path]]] = {
    "sequences": _sequences_files,
    "movielens": _movielens_files,
    "amazon": _amazon_files,
    "lastfm": _lastfm_files,
    "table": table.files,
}
