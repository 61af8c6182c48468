"""A column of times of any type → whole ticks, exact to the nanosecond.

Between day and month nothing is guessed: a text is a number, an ISO 8601 date, or follows a format that is given.

Shapes: every series has the N rows of the column.
"""

import re

import polars as pl

from distrec.data.raw import ids
from distrec.data.raw.values import days

PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
NANO = 10**9
MOST = 2**63 - 1
Faults = list[tuple[pl.Series, str]]  # (which rows, what is wrong with them)

_ISO = (
    r"^([0-9]{4})(-?)([0-9]{2})(-?)([0-9]{2})"
    r"(?:[Tt ]([0-9]{2}):?([0-9]{2})(?::?([0-9]{2})(?:[.,]([0-9]+))?)?"
    r" ?(Z|z|UTC|GMT|[+-](?:0[0-9]|1[0-8])(?::?[0-5][0-9])?)?)?$"
)
_ONE_SHAPE = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:([Tt ])[0-9]{2}:[0-9]{2}:[0-9]{2}([.,][0-9]{1,9})?(Z|[+-][0-9]{2}:?[0-9]{2})?)?"
)
_NUMBER = r"^([+-]?)([0-9]*)(?:[.]([0-9]*))?(?:[eE]([+-]?[0-9]{1,4}))?$"
_NUMBER_ALONE = r"[+-]?(?:[0-9]+[.]?[0-9]*|[.][0-9]+)(?:[eE][+-]?[0-9]{1,4})?"
_FINER = "is finer than a nanosecond; round it, or set data.columns.time_unit=order, which keeps the order alone"
# what stands for nothing: the words that no id is, and those of dates and floats
_NOTHING = ["", *dict.fromkeys(word.lower() for word in ids.WORDS)]
_NOTHING += ["inf", "-inf", "+inf", "infinity", "-infinity", "0000-00-00", "0000-00-00 00:00:00"]


def ticks(column: pl.Series, unit: str, form: str | None) -> tuple[pl.Series, int, Faults]:
    """Return (ticks: i64, null where no time stands; ticks per second; the rows that cannot be read).

    Ticks are those of `unit` (s, ms, us, ns) where the values are whole, else as fine as the values need.
    What lies beyond 64 bits becomes the last of them, so that it is out of any range.
    `form`: a strptime format, "epoch" (numbers), "iso", or None (numbers or ISO).

    Raises: ValueError for a type that holds no times, and for a `form` that is no format.
    """
    kind = column.dtype
    if isinstance(kind, pl.Categorical | pl.Enum):
        column, kind = column.cast(pl.String), pl.String()
    if kind == pl.Null:
        return column.cast(pl.Int64), 1, []
    if isinstance(kind, pl.Date | pl.Datetime):
        if form not in (None, "iso"):
            raise ValueError(f"the time column holds {kind} and no texts; remove data.columns.time_format")
        per_second = PER_SECOND[kind.time_unit] if isinstance(kind, pl.Datetime) else 1
        whole = column.to_physical().cast(pl.Int64)
        return whole if per_second > 1 else whole * 86_400, per_second, []
    if not (kind == pl.String or kind.is_numeric()):
        raise ValueError(f"the time column holds {kind}; give epoch numbers, dates or ISO texts")
    if form == "iso":
        return _iso(_bare(_as_texts(column)))
    if form not in (None, "epoch"):
        return _formatted(_bare(_as_texts(column)), form)
    return _texts(column, unit, form) if kind == pl.String else _numbers(column, unit)


def ranks(column: pl.Series) -> tuple[pl.Series, Faults]:
    """Return the ranks of numbers of any type (i64, null where none stands), and the rows that cannot be read."""
    faults: Faults = []
    if isinstance(column.dtype, pl.Categorical | pl.Enum | pl.String):
        text = _bare(column.cast(pl.String))
        column = text.cast(pl.Int64, strict=False)
        if column.null_count() > text.null_count():
            column, finer = _decimals(text, 18)
            far = (column.abs() == _FAR).fill_null(False)
            faults = [
                (column.is_null() & text.is_not_null(), "is not a number, which data.columns.time_unit=order takes"),
                (finer | far, "has too many digits; write order numbers as whole numbers"),
            ]
    elif not column.dtype.is_numeric():
        raise ValueError(f"the time column holds {column.dtype}, and no order numbers; remove data.columns.time_unit")
    elif column.dtype.is_float():
        column = column.fill_nan(None).set(column.is_infinite(), None)
    return column.rank("dense").cast(pl.Int64), faults


def _bare(text: pl.Series) -> pl.Series:
    """Remove blanks around a value, and the words that stand for nothing."""
    text = text.str.strip_chars()
    return text.set(text.str.to_lowercase().is_in(_NOTHING), None)


def _as_texts(column: pl.Series) -> pl.Series:
    """Numbers as texts, whole ones without a point."""
    if column.dtype.is_integer() or column.dtype == pl.String:
        return column.cast(pl.String)
    whole = column.cast(pl.Int64, strict=False)
    is_whole = (whole.cast(pl.Float64) == column.cast(pl.Float64)).fill_null(False)
    return whole.cast(pl.String).zip_with(is_whole, column.cast(pl.String))


def _clip(wide: pl.Series) -> pl.Series:
    return wide.clip(-MOST, MOST).cast(pl.Int64)


def _wide(number: int) -> pl.Series:
    """A number that 128-bit columns can be multiplied and divided by."""
    return pl.Series([number], dtype=pl.Int128)


# --- dates written out ------------------------------------------------------------------------


def _formatted(text: pl.Series, form: str) -> tuple[pl.Series, int, Faults]:
    """Read texts of one strptime format, strictly; without a zone in it they are UTC."""
    form = form.replace(".%f", "%.f")  # Python's fraction of a second
    if "%" not in form or re.search(r"(?<![.%])%[fZs]", form):
        raise ValueError(
            f"data.columns.time_format={form!r} is no format; give strptime marks, such as %d/%m/%Y %H:%M:%S "
            "(.%f is a fraction of a second, %z a zone in figures; %Z and %s are not read), or epoch, or iso"
        )
    if re.fullmatch(r"%[dmyHI](?:%[YmdyHMS])*", form):  # a number has lost the zero of 01022024
        text = text.str.zfill(2 * len(re.findall("%[^Y]", form)) + 4 * form.count("%Y"))
    marks = form
    if re.search("%[HI]", form) and not re.search("%[MRTrcX]", form):  # no hour is read without its minute
        marks, text = f"%M {form}", "00 " + text
    try:
        micro = text.str.to_datetime(marks, strict=False, time_unit="us").to_physical()
        nano = text.str.to_datetime(marks, strict=False, time_unit="ns").to_physical() % 1000 if "f" in form else None
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"data.columns.time_format={form!r}: {str(error).splitlines()[0]}") from None
    faults = [(micro.is_null() & text.is_not_null(), f"does not follow data.columns.time_format={form}")]
    if nano is None or not (nano != 0).any():
        return micro, PER_SECOND["us"], faults
    return _clip(micro.cast(pl.Int128) * _wide(1000) + nano), NANO, faults


def _iso(text: pl.Series) -> tuple[pl.Series, int, Faults]:
    """Read ISO 8601 texts of any precision and zone, extended or basic; second 60 is the next minute's first."""
    names = ["year", "hyphen", "month", "other", "day", "hour", "minute", "second", "fraction", "zone"]
    parts = text.str.extract_groups(_ISO).struct.rename_fields(names).struct.unnest()
    hour, minute, second = (pl.col(name).fill_null("00") for name in ("hour", "minute", "second"))
    fraction = pl.col("fraction").fill_null("")
    is_midnight = (hour == "24") & (minute == "00") & (second == "00") & (fraction.str.strip_chars("0") == "")
    hour = pl.when(is_midnight).then(pl.lit("00")).otherwise(hour)  # 24:00 ends the day
    base = pl.concat_str(
        "year", pl.lit("-"), "month", pl.lit("-"), "day", pl.lit("T"), hour, pl.lit(":"), minute, pl.lit(":"), second
    )
    zone = pl.col("zone").str.replace(":", "", literal=True)
    east = zone.str.extract(r"([0-9]+)").str.pad_end(4, "0").cast(pl.Int64).fill_null(0)
    east = (east // 100 * 3600 + east % 100 * 60) * pl.when(zone.str.starts_with("-")).then(-1).otherwise(1)
    read = parts.select(
        micro=base.str.to_datetime("%Y-%m-%dT%H:%M:%S", strict=False, time_unit="us").dt.epoch("us")
        + (is_midnight.cast(pl.Int64) * 86_400 - east.fill_null(0)) * 10**6,
        nano=fraction.str.pad_end(9, "0").str.head(9).cast(pl.Int64),
        finer=fraction.str.slice(9).str.strip_chars("0") != "",
        wrong=(pl.col("hyphen") != pl.col("other")).fill_null(True),
    )
    unread = (read["micro"].is_null() | read["wrong"]) & text.is_not_null()
    return *_joined(read["micro"], read["nano"]), [
        (unread, days.reason(text, unread, days.NOT_READ)),
        (read["finer"], _FINER),
    ]


def _iso_of_one_shape(text: pl.Series) -> tuple[pl.Series, int] | None:
    """Read the usual case quickly: every text as long as the first, with its precision and its very zone."""
    bytes_, first = text.str.len_bytes(), text.first(ignore_nulls=True)
    shape = _ONE_SHAPE.fullmatch(first) if isinstance(first, str) and bytes_.min() == bytes_.max() else None
    if shape is None:
        return None
    mark, fraction, zone = (part or "" for part in shape.groups())
    if not mark:
        second = text.str.to_date("%Y-%m-%d", strict=False).to_physical().cast(pl.Int64) * 86_400
        return (second, 1) if second.null_count() == text.null_count() else None
    clock = text.str.head(19) if fraction or zone else text
    tick = clock.str.to_datetime(f"%Y-%m-%d{mark}%H:%M:%S", strict=False, time_unit="us").to_physical()
    right, nano = tick.is_not_null(), None
    if fraction:
        decimals = text.str.slice(20, len(fraction) - 1)
        nano = decimals.cast(pl.Int64, strict=False) * 10 ** (10 - len(fraction))
        right &= (text.str.slice(19, 1) == fraction[0]) & nano.is_not_null() & ~decimals.str.contains(r"[+-]")
    if zone:
        hours, minutes = int(zone[1:3] or 0), int(zone[-2:] if len(zone) > 1 else 0)
        if hours > 18 or minutes > 59:
            return None
        right &= text.str.slice(19 + len(fraction)) == zone
        tick = tick - (hours * 3600 + minutes * 60) * (-(10**6) if zone[0] == "-" else 10**6)
    if right.sum() < len(text) - text.null_count():
        return None
    return (tick, 10**6) if nano is None else _joined(tick, nano)


def _joined(micro: pl.Series, nano: pl.Series) -> tuple[pl.Series, int]:
    """Microseconds and nanoseconds more → (ticks, ticks per second): of microseconds where those suffice."""
    if not (nano % 1000 != 0).any():
        return micro + nano // 1000, 10**6
    return _clip(micro.cast(pl.Int128) * _wide(1000) + nano), NANO


# --- numbers ----------------------------------------------------------------------------------

_FAR = 10**37
_LARGE = (pl.UInt64, pl.Int128, pl.UInt128)


def _texts(column: pl.Series, unit: str, form: str | None) -> tuple[pl.Series, int, Faults]:
    """Read texts that are all numbers or all ISO, as the first of them is."""
    whole = column.cast(pl.Int64, strict=False)
    if whole.null_count() == column.null_count():  # the usual case, in one pass
        return whole, PER_SECOND[unit], []
    if form is None and (quick := _iso_of_one_shape(column)):
        return *quick, []
    text = _bare(column)
    first = text.first(ignore_nulls=True)
    has_number_first = not isinstance(first, str) or re.fullmatch(_NUMBER_ALONE, first) is not None
    if form is not None or has_number_first:
        read = _number_texts(text, unit)
        if form is not None or not read[2][0][0].any():
            return read
    is_number = text.str.contains(f"^{_NUMBER_ALONE}$")
    value, per_second, faults = _iso(text)
    numbers, dates = int(is_number.sum()), int((value.is_not_null() & ~faults[0][0] & ~is_number).sum())
    if dates > numbers or (dates == numbers and not has_number_first):
        mixed = is_number & value.is_null()
        return value, per_second, [(mixed, "is a number, while most times are texts"), *faults]
    return _number_texts(text, unit)


def _number_texts(text: pl.Series, unit: str) -> tuple[pl.Series, int, Faults]:
    places = len(str(NANO // PER_SECOND[unit])) - 1
    value, finer = _decimals(text, places)
    unread = value.is_null() & text.is_not_null()
    why = days.reason(text, unread, "is not a number, as most are")
    return *_coarse(value, 10**places, unit), [(unread, why), (finer, _FINER)]


def _numbers(column: pl.Series, unit: str) -> tuple[pl.Series, int, Faults]:
    kind, step = column.dtype, NANO // PER_SECOND[unit]
    if isinstance(kind, pl.Decimal):
        scale, bare = 10**kind.scale, column.to_physical()
        if scale <= step:
            return *_coarse(bare.clip(-(10**28), 10**28) * _wide(step // scale), step, unit), []
        return *_coarse(bare // _wide(scale // step), step, unit), [(bare % _wide(scale // step) != 0, _FINER)]
    if kind.is_integer():
        return _clip(column.cast(pl.Int128)) if kind in _LARGE else column.cast(pl.Int64), PER_SECOND[unit], []
    return _floats(column.cast(pl.Float64), unit)


def _floats(column: pl.Series, unit: str) -> tuple[pl.Series, int, Faults]:
    """Read floats as the shortest decimals that name them, if those are whole microseconds, else to the nanosecond.

    Both keep the order: such a decimal lies nearer to its float than any other float does.
    """
    column = column.fill_nan(None).set(column.is_infinite(), None)
    limit = float(2**62)
    floor = column.clip(-limit, limit).floor()
    whole = floor.cast(pl.Int64)
    fraction = column - floor  # exact
    fraction = fraction.set(column.abs() >= limit, 0.0)
    if not (fraction != 0).any():
        return whole.set((column >= limit), MOST).set((column <= -limit), -MOST), PER_SECOND[unit], []
    step = NANO // PER_SECOND[unit]
    nano = whole.cast(pl.Int128) * _wide(step) + (fraction * step).round().cast(pl.Int64)
    if step > 1000:
        micro = whole.cast(pl.Int128) * _wide(step // 1000) + (fraction * (step // 1000)).round().cast(pl.Int64)
        nano = (micro * _wide(1000)).zip_with(
            (micro.cast(pl.Float64) / (step // 1000) == column).fill_null(False), nano
        )
    finer = (column.abs() * step < 2**52) & (nano.cast(pl.Float64) / step != column)
    return *_coarse(nano, step, unit), [(finer, _FINER)]


def _decimals(text: pl.Series, places: int) -> tuple[pl.Series, pl.Series]:
    """Decimal texts × 10^places as whole numbers (i128, null for what is no number), and which have more digits."""
    names = ["sign", "whole", "fraction", "power"]
    parts = text.str.extract_groups(_NUMBER).struct.rename_fields(names).struct.unnest()
    parts = parts.with_columns(pl.col("fraction").fill_null(""), pl.col("power").cast(pl.Int32).fill_null(0))
    parts = parts.with_columns(
        digits=pl.col("whole") + pl.col("fraction"),
        shift=places + pl.col("power") - pl.col("fraction").str.len_bytes().cast(pl.Int32),
    ).with_columns(length=pl.col("digits").str.len_bytes().cast(pl.Int32))
    cut = pl.min_horizontal("length", (-pl.col("shift")).clip(0))
    grown = pl.col("length") + pl.col("shift").clip(0, 40)
    kept = pl.col("digits").str.head(pl.col("length") - cut).str.pad_end(grown - cut, "0")
    read = parts.select(
        kept=kept.str.strip_chars_start("0"),
        finer=pl.col("digits").str.tail(cut).str.strip_chars("0") != "",
        none=(pl.col("length") == 0) | pl.col("digits").is_null(),
        sign=pl.col("sign").str.replace("+", "", literal=True),
    )
    value = pl.when(pl.col("kept") == "").then(pl.lit("0"))
    value = value.when(pl.col("kept").str.len_bytes() > 37).then(pl.lit(str(_FAR))).otherwise("kept")
    value = pl.when(~pl.col("none")).then(pl.concat_str("sign", value)).cast(pl.Int128)
    return read.select(value=value)["value"], read["finer"].fill_null(False)


def _coarse(value: pl.Series, step: int, unit: str) -> tuple[pl.Series, int]:
    """Numbers of `step` to the unit (i128) → (ticks, ticks per second): those of the unit where they are whole."""
    if not (value % _wide(step) != 0).any():
        return _clip(value // _wide(step)), PER_SECOND[unit]
    return _clip(value), PER_SECOND[unit] * step
