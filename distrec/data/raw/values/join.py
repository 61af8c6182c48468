"""Does the item table belong to the log?  How many of either's items the other has, and what differs if few."""

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from distrec.data.raw.layout import Raw
from distrec.knobs import Data
from distrec.runtime import brief, log

# Cyrillic and Greek letters that look like Latin ones
_ALIKE = dict(zip("асеорхуіјѕАВЕКМНОРСТХІЈЅΑΒΕΖΗΙΚΜΝΟΡΤΥΧο", "aceopxyijsABEKMHOPCTXIJSABEZHIKMNOPTYXo", strict=True))
# ways in which two programs write one id, tried one after the other on both sides; first those that look the same
_UNSEEN = {
    "the Unicode form of accents (NFC or NFD)": lambda name: name.str.normalize("NFC"),
    "marks that are not seen": lambda name: name.str.replace_all(r"\p{Cf}", ""),
    "letters of another alphabet that look alike": lambda name: name.str.replace_many(_ALIKE),
    "wide or joined characters (Unicode's NFKC)": lambda name: name.str.normalize("NFKC"),
}
_SPELLINGS = {
    **_UNSEEN,
    "leading zeros": lambda name: name.str.strip_chars_start("0"),
    "upper and lower case": lambda name: name.str.to_lowercase(),
    "a fraction .0": lambda name: name.str.replace(r"\.0+$", ""),
    "marks around it": lambda name: name.str.strip_chars("'\"[](){}<>#"),
}
_NUMBERS = {"what stands before its number": lambda name: name.str.extract(r"0*([0-9]+)$", 1)}


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
        raise ValueError(
            f"{path}: {said}; {_cause(alone['item'], unused['item'])}: write the ids alike, name the right column "
            "(data.columns.item_key), or set data.min_joined=0 if the other items have no text"
        )
    others = [
        f"{side.height:,} {what} (first {brief(side['item'][0])})"
        for side, what in ((alone, "have no row there"), (unused, "of its items are not in the log"))
        if side.height
    ]
    n, how = _difference(alone["item"], unused["item"], _SPELLINGS)
    log(
        f"{said}; {', '.join(others)}"
        + (f"; {n:,} are there in another spelling, {how}: write the ids alike" if n else "")
    )


def _cause(log_only: pl.Series, table_only: pl.Series) -> str:
    """One id of either side, the same item if a spelling tells of most, and what is different about them."""
    n, how = _difference(log_only, table_only, _SPELLINGS | _NUMBERS)
    if n * 2 > len(log_only):
        return how
    return f"the log has {brief(log_only[0])}, " + (
        f"the table {brief(table_only[0])}" if len(table_only) else "and the table no other"
    )


def _difference(
    log_only: pl.Series, table_only: pl.Series, spellings: Mapping[str, Callable[[Any], pl.Series]]
) -> tuple[int, str]:
    """(how many of the log's ids are in the table by the spelling that finds most, one of them as either side has it)."""
    most, how = 0, ""
    for name, spelling in spellings.items() if len(log_only) and len(table_only) else ():
        sides = [pl.DataFrame({"item": side, "key": spelling(side)}) for side in (log_only, table_only)]
        pairs = sides[0].join(sides[1], on="key", suffix="_table").sort("item")
        if (n := pairs["item"].n_unique()) > most:
            own, other = (brief(pairs[side][0]) for side in ("item", "item_table"))
            if name in _UNSEEN:
                own, other = (each.encode("ascii", "backslashreplace").decode() for each in (own, other))
            most, how = n, f"the log has {own}, the table {other}: they differ in {name}"
    return most, how
