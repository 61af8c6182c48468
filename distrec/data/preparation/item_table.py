"""The item table: one row per item in the order of ids, with its text and its attributes."""

import string
from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Int

from distrec.runtime import brief, log


def check_template(template: str) -> None:
    """A template fills named fields and does nothing else: no attributes, no indices, no formats."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"data.text={template!r}: {error}") from None
    for _, name, form, conversion in parts:
        if name is not None and (not name.isidentifier() or form or conversion):
            raise ValueError(f"data.text={template!r}: a field is a plain name in braces, got {name!r}")


def once(attributes: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """(one row per id: of several the first value of each attribute that is not empty; how many ids have rows that differ)."""
    names = [name for name in attributes.columns if name != "item"]
    is_repeated = attributes["item"].is_duplicated()
    if not names or not is_repeated.any():
        return attributes.unique("item", keep="first", maintain_order=True), 0
    filled = [pl.col(name).filter(pl.col(name) != "") for name in names]
    groups = attributes.filter(is_repeated).group_by("item", maintain_order=True)
    merged = groups.agg(each.first() for each in filled).with_columns(pl.col(names).fill_null(""))
    odd = groups.agg(each.n_unique() for each in filled).filter(pl.any_horizontal(pl.col(name) > 1 for name in names))
    if odd.height:
        name = next(name for name in names if odd[name][0] > 1)
        rows = attributes.filter(pl.col("item") == odd["item"][0], pl.col(name) != "")
        values = rows[name].unique(maintain_order=True)
        log(
            f"items whose rows in the item table differ: {odd.height:,}; the first value that is not empty is kept (item "
            f"{brief(odd['item'][0])}: {name} {brief(values[0])}, not {brief(values[1])})"
        )
    return pl.concat([attributes.filter(~is_repeated), merged]), odd.height


def table(attributes: pl.DataFrame, names: pl.Series, template: str) -> pl.DataFrame:
    """One row per item in the order of ids: raw, text, then attributes ("" where the source has none).

    `attributes` has one row for each id that it has (see `once`).
    """
    fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    known = [name for name in attributes.columns if name != "item"]
    for name in fields:
        if name not in known and name != "item":
            raise ValueError(
                f"data.text={template!r}: items have no {name!r}; they have: {', '.join(['item', *known])}"
            )
    rows = (
        names.to_frame("item")
        .join(attributes, on="item", how="left", maintain_order="left")
        .with_columns(pl.col(known).fill_null(""))
    )
    parts = [
        part
        for literal, name, _, _ in string.Formatter().parse(template)
        for part in (pl.lit(literal), name and pl.col(name))
        if part is not None
    ]
    text = pl.concat_str(parts) if parts else pl.lit("")
    empty = pl.all_horizontal(pl.col(name) == "" for name in fields) if fields else pl.lit(False)
    filled = pl.when(empty).then(pl.lit("")).otherwise(text.str.strip_chars())
    kept = [pl.col(name).alias(new) for name, new in stored(known).items()]
    return rows.select(pl.col("item").alias("raw"), filled.alias("text"), *kept)


def stored(names: Sequence[str]) -> dict[str, str]:
    """The name under which each attribute is kept: `raw` and `text`, which are the id and the filled template, as raw_ and text_."""
    kept = {name: name for name in names if name not in ("raw", "text")}
    for name in ("raw", "text"):
        if name in names:
            kept[name] = next(name + "_" * n for n in range(1, len(names) + 2) if name + "_" * n not in kept.values())
    return kept


def without_interactions(attributes: pl.DataFrame, known: pl.Series) -> pl.Series:
    """The distinct ids of the item table that no interaction of the log names, sorted; `known`: those that one does."""
    ids = attributes["item"].unique()
    return ids.filter((ids != "") & ~ids.is_in(known.implode())).sort()


def n_removed(attributes: pl.DataFrame, known: pl.Series, kept: pl.Series) -> int:
    """How many ids of the item table have interactions in the log, and none after its cleaning."""
    ids = attributes["item"].unique()
    return int((ids.is_in(known.implode()) & ~ids.is_in(kept.implode())).sum())


def with_cold(known: pl.Series, cold: pl.Series, rng: np.random.Generator) -> tuple[pl.Series, Int[np.ndarray, " I"]]:
    """(all ids in a seeded order, the new number of each known one).

    The order depends on the names and the seed alone: were the cold ones last, an id would say that an item without
    training interactions has others, held out.
    """
    names = pl.concat([known, cold]).sort()
    names = names.gather(rng.permutation(len(names)))
    numbers = pl.DataFrame({"name": names, "number": np.arange(len(names), dtype=np.int32)})
    placed = known.alias("name").to_frame().join(numbers, on="name", how="left", maintain_order="left")
    return names, placed["number"].to_numpy()
