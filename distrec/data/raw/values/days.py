"""Times in notations that are not read as they stand: days such as 20240131, counts of 100 nanoseconds, objects, commas."""

import re
from datetime import UTC, datetime

import polars as pl

NOT_READ = (
    "is neither a number nor an ISO date such as 2024-01-31T10:00:00; say its format, "
    "e.g. data.columns.time_format=%d/%m/%Y or =%m/%d/%Y"
)
_ISO_SHAPE = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[Tt ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]+)?)? ?(?:Z|z|UTC|GMT|[+-][0-9:]+)?)?"
)
_SAMPLE = 100_000  # times that are looked at; a notation is that of most of them
_FIRST_YEAR = 1990
# a date and what a clock may add to it, as people name it and as strptime does
_DATES = [("YYYYMMDD", "%Y%m%d"), ("DDMMYYYY", "%d%m%Y"), ("MMDDYYYY", "%m%d%Y")]
_CLOCKS = [
    *(("a day", "", ""), ("an hour", "hh", "%H"), ("a minute", "hhmm", "%H%M"), ("a second", "hhmmss", "%H%M%S")),
    ("a millisecond", "hhmmssSSS", "%H%M%S%3f"),
]
_LAYOUTS = [
    ("a month written as YYYYMM", 6, "%Y%m"),
    *(
        (f"{what} written as {date}{clock}", len(date + clock), form + marks)
        for date, form in _DATES
        for what, clock, marks in _CLOCKS
    ),
    *(("a day written as YYMMDD", 6, "%y%m%d"), ("a day written as DDMMYY", 6, "%d%m%y")),
    ("a day written as MMDDYY", 6, "%m%d%y"),
]
# counts of 100 nanoseconds: who writes them, since when, and 1970 in them
_TICKS = [(".NET", "the year 1", 621_355_968_000_000_000), ("Windows", "1601", 116_444_736_000_000_000)]
_FIRST, _LAST = 631_152_000 * 10**7, 4_102_444_800 * 10**7  # 1990 and 2100
LAST_TICK = _TICKS[0][2] + _LAST


def layouts(number: pl.Series) -> tuple[list[str], list[str], pl.Series] | None:
    """Return the layouts of days that most known numbers follow: (their names, their formats, which rows follow the first)."""
    known = number.drop_nulls()
    known = known.filter(known != 0)
    sample = known.gather_every(len(known) // _SAMPLE + 1)
    shares = [float(_follows(sample, digits, form).sum()) / max(len(sample), 1) for _, digits, form in _LAYOUTS]
    if (most := max(shares)) <= 0.5:
        return None
    found = [layout for layout, share in zip(_LAYOUTS, shares, strict=True) if share == most]
    names, sizes, forms = (list(each) for each in zip(*found, strict=True))
    return names, forms, _follows(number, sizes[0], forms[0])


def hundreds_of_nanoseconds(number: pl.Series) -> tuple[str, str, pl.Series] | None:
    """Return (who counts so, how such a number becomes microseconds, which rows do), where most known numbers do."""
    known = number.drop_nulls()
    for who, since, origin in _TICKS:
        rows = number.is_between(origin + _FIRST, origin + _LAST).fill_null(False)
        if int(rows.sum()) > 0.5 * max(len(known), 1):
            remedy = f"subtract {origin}, divide by 10, and set data.columns.time_unit=us"
            return f"a count of 100 nanoseconds since {since}, as {who} writes it", remedy, rows
    return None


def reason(text: pl.Series, unread: pl.Series, what: str) -> str:
    """Return what is wrong with the first text that cannot be read, `what` if it is nothing known."""
    first = text.filter(unread).first() if unread.any() else None
    if isinstance(first, str) and first.startswith("{"):
        return (
            'is an object, and no time; write its value alone (of MongoDB\'s {"$date": …}, an ISO text or milliseconds)'
        )
    if what == NOT_READ and isinstance(first, str) and _ISO_SHAPE.fullmatch(first):
        return "is no day and time that there is; mend the file (or set data.columns.time_format, e.g. %Y-%d-%m)"
    if isinstance(first, str) and re.fullmatch(r"[+-]?[0-9]+,[0-9]+(?:[eE][+-]?[0-9]+)?", first):
        return "has a comma, and so is no number; write a point before its fraction"
    return what


def _follows(number: pl.Series, digits: int, form: str) -> pl.Series:
    whole = number.cast(pl.Int64, strict=False)
    text = whole.cast(pl.String)
    if not form.startswith("%Y"):  # a number has lost the zero of 01022024
        text = text.str.zfill(digits).zip_with(text.str.len_bytes() == digits - 1, text)
    fits = ((whole == number) & (text.str.len_bytes() == digits)).fill_null(False)
    if not fits.any():
        return fits
    clock = form.replace("%3f", "")
    text = text.str.head(digits - 3) if clock != form else text
    if form.endswith("%H"):  # strptime takes no hour without its minute
        text, clock = text + "00", f"{form}%M"
    return fits & text.str.to_datetime(clock, strict=False).dt.year().is_between(
        _FIRST_YEAR, datetime.now(UTC).year
    ).fill_null(False)
