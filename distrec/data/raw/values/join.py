"""Does the item table belong to the log?  How many of either's items the other has, and what differs if few."""

import polars as pl

from distrec.data.raw.layout import Raw
from distrec.knobs import Data
from distrec.runtime import brief, log

# ways in which two programs write one id, tried one after the other on both sides
_SPELLINGS = {
    "leading zeros": lambda name: name.str.strip_chars_start("0"),
    "upper and lower case": lambda name: name.str.to_lowercase(),
    "a fraction .0": lambda name: name.str.replace(r"\.0+$", ""),
    "marks around it": lambda name: name.str.strip_chars("'\"[](){}<>#"),
    "what stands before its number": lambda name: name.str.extract(r"0*([0-9]+)$", 1),
}


def check(raw: Raw, config: Data) -> None:
    """Tell how the items of the log and of its item table join; count the rows that join with nothing.

    Raises: ValueError where fewer than `data.min_joined` of the log's items are in the table, with one of each side.
    """
    has_items = len(raw.files) > 1 and (not raw.items.is_empty() or config.items is not None)
    if not has_items or raw.interactions.is_empty():
        return
    path, table = raw.files[-1], raw.items["item"].unique().to_frame()
    logged = raw.interactions.lazy().select("item").unique().collect(engine="streaming")
    alone = logged.join(table, on="item", how="anti").sort("item")
    unused = table.join(logged, on="item", how="anti").sort("item")
    joined = logged.height - alone.height
    if unused.height:
        raw.of_items["item rows that join with nothing"] = raw.items.filter(
            raw.items["item"].is_in(unused["item"].implode())
        ).height
    if not alone.height and not unused.height:
        return
    said = f"{joined:,} of {logged.height:,} items of the log are in {path.name}"
    if joined < config.min_joined * logged.height:
        how = _difference(alone["item"], unused["item"])
        raise ValueError(
            f"{path}: {said}; {how}: write the ids alike, name the right column (data.columns.item_key), "
            "or set data.min_joined=0 if the other items have no text"
        )
    others = [f"{alone.height:,} have no row there (first {brief(alone['item'][0])})"] if alone.height else []
    others += (
        [f"{unused.height:,} of its items are not in the log (first {brief(unused['item'][0])})"]
        if unused.height
        else []
    )
    log(f"{said}; {', '.join(others)}")


def _difference(log_only: pl.Series, table_only: pl.Series) -> str:
    """One id of either side, the same item if a spelling tells, and what is different about them."""
    if not len(table_only):
        return f"the log has {brief(log_only[0])}, and the table no other"
    for name, spelling in _SPELLINGS.items():
        sides = [pl.DataFrame({"item": side, "key": spelling(side)}) for side in (log_only, table_only)]
        pairs = sides[0].join(sides[1], on="key", suffix="_table").sort("item")
        if pairs.height * 2 > len(log_only):
            first = pairs.row(0, named=True)
            return f"the log has {brief(first['item'])}, the table {brief(first['item_table'])}: they differ in {name}"
    return f"the log has {brief(log_only[0])}, the table {brief(table_only[0])}"
