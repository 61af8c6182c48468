"""Times as people write them: read exactly, in order, or refused in words (cases 02 03 04 05 09 33)."""

import datetime as dt
import json
from decimal import Decimal
from fractions import Fraction

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrec import config as cfg
from distrec.data import prepared
from distrec.data.raw import sources
from distrec.data.raw.values import days, instants

NOW = 1_700_000_000  # 2023-11-14T22:13:20


def log(folder, times, dtype=None):
    """A log of one user whose items are i0, i1, … in the order of the file."""
    frame = pl.DataFrame({"user": ["u"] * len(times), "item": [f"i{n}" for n in range(len(times))]})
    times = times if isinstance(times, pl.Series) else pl.Series(times, dtype=dtype)
    frame = frame.with_columns(time=times)
    is_text = times.dtype == pl.String
    frame.write_csv(folder / "log.csv") if is_text else frame.write_parquet(folder / "log.parquet")
    return "data.source=table", f"data.path={folder}/log.{'csv' if is_text else 'parquet'}", "data.negatives=0"


def read(folder, times, *args, dtype=None):
    raw = sources.read(cfg.load([*log(folder, times, dtype), *args]).data)
    return raw.interactions["time"].to_list()


def refused(folder, times, *args, match, dtype=None):
    with pytest.raises(ValueError, match=match) as caught:
        read(folder, times, *args, dtype=dtype)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def ticks(values, unit="s", form=None, dtype=None):
    value, per_second, faults = instants.ticks(pl.Series(values, dtype=dtype), unit, form)
    assert not any(rows.any() for rows, _ in faults)
    return [None if tick is None else Fraction(tick, per_second) for tick in value]


# --- what is read, to the nanosecond ----------------------------------------------------------

DAY = dt.datetime(2024, 1, 31, tzinfo=dt.UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2024-01-31", 0),
        ("20240131T100000Z", 36_000),
        *(
            (text, 86_400)
            for text in ("2024-01-31 24:00:00", "2024-01-31T24:00", "20240131T240000Z", "2024-01-31T24:00:00.000")
        ),
        ("2024-01-31T24:00:00+02:00", 79_200),
        ("2024-01-31T10:00", 36_000),
        ("2024-01-31T10:00Z", 36_000),
        ("2024-01-31 10:00:00", 36_000),
        ("2024-01-31t10:00:00z", 36_000),
        (" 2024-01-31T10:00:00 ", 36_000),
        ("2024-01-31T10:00:00.5", "36000.5"),
        ("2024-01-31T10:00:00,5", "36000.5"),
        ("2024-01-31T10:00:00.000001", "36000.000001"),
        ("2024-01-31T10:00:00.123456789Z", "36000.123456789"),
        ("2024-01-31T10:00:00.1234567890", "36000.123456789"),
        ("2024-01-31T10:00:00.000000001+02:00", "28800.000000001"),
        ("2024-01-31T10:00:00+0200", 28_800),
        ("2024-01-31 10:00:00+00", 36_000),
        ("2024-01-31 10:00:00-05:30", 55_800),
        ("2024-01-31 10:00:00 UTC", 36_000),
        ("2024-01-31 10:00:00.25 +0100", "32400.25"),
        ("2024-01-31T23:59:60Z", 86_400),
    ],
)
def test_an_iso_text_is_its_instant_alone_and_among_others(text, seconds):
    exact = Fraction(DAY) + Fraction(seconds)
    assert ticks([text, text]) == [exact, exact]  # all of one shape
    assert ticks([text, "2024-01-01", None, "2024-01-31T00:00:00.5-01:00"])[0] == exact


@pytest.mark.parametrize(
    "text",
    [
        *("2024-02-30", "2024-01-31T10:60:00", "2024-13-01", "2024-01", "2024-1-2"),
        *(
            "2024-0131",
            "202401-31",
            "2024-01-31T10:00:00+25:00",
            "2024-01-31T10:00:00+02:75",
            "2024-01-31T10:00:00 CET",
        ),
        *("2024-01-31T10:00:00.", "2024-01-31T10:00:00.+12", "2024-01-31T10:00:00x", "2024-01-31Z", "2024-W05-3"),
        *("01/02/2024", "2024.01.02", "2024/01/02", "Jan 2 2024", "2 January 2024", "2024-01-31 10:00:00 PM", "soon"),
        *("2024-01-31T24:00:01", "2024-01-31T24:01", "2024-01-31T24:00:00.1", "2024-01-31T25:00:00"),
        *("1,600,000,000", "1 600 000 000", "0x10", "16e", "1_000", "１６００００００００", "12:30"),
    ],
)
@pytest.mark.parametrize("others", [[], ["2024-01-31"], ["1600000000"]])
def test_what_is_neither_a_number_nor_iso_is_refused_with_its_line(tmp_path, text, others):
    told = refused(tmp_path, [*others, text, text], match=f"line {2 + len(others)}: time ")
    assert repr(text) in told
    assert "and 1 more" in told
    assert "time_format" in told or others


@pytest.mark.parametrize(
    ("usual", "odd", "seconds"),
    [
        ("2024-01-31T10:00:00.123", "2024-01-31T10:00:00.+12", None),
        ("2024-01-31T10:00:00.123", "2024-01-31T10:00:00-123", None),
        ("2024-01-31T10:00:00.12", "2024-01-31T10:00:00+02", 8 * 3600),
        ("2024-01-31T10:00:00+02:00", "2024-01-31T10:00:00-02:00", 12 * 3600),
        ("2024-01-31T10:00:00+02:00", "2024-01-31T10:00:00.12345", "36000.12345"),
        ("2024-01-31T10:00:00Z", "2024-01-31T10:00:00z", 36_000),
        ("2024-01-31T10:00:00", "2024-01-31 10:00:00", 36_000),
        ("2024-01-31", "20240131T1", None),
        ("2024-01-31", "2024-02-30", None),
    ],
)
def test_a_text_as_long_as_the_others_is_not_taken_for_one_of_them(tmp_path, usual, odd, seconds):
    if seconds is None:
        refused(tmp_path, [usual, odd], match="line 3: time ")
    else:
        assert ticks([usual, odd])[1] == Fraction(DAY) + Fraction(seconds)


def test_numbers_and_iso_texts_do_not_stand_in_one_column(tmp_path):
    refused(tmp_path, ["2024-01-31", "1706659200"], match="line 3: time '1706659200' is a number, while")
    refused(tmp_path, ["1706659200", "2024-01-31"], match="line 3: time '2024-01-31' is not a number")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("1.6e9", 1_600_000_000), ("1.6E+9", 1_600_000_000), ("+1600000000", 1_600_000_000), ("16e8", 1_600_000_000)),
        *((" 1600000000 ", 1_600_000_000), ("1600000000.0", 1_600_000_000), ("160000000000e-2", 1_600_000_000)),
        *(("1600000000.123456789", "1600000000.123456789"), ("1600000000123456789e-9", "1600000000.123456789")),
        *((".5", "0.5"), ("7.", 7), ("0.0000000010", "0.000000001"), ("0e400", 0), ("00012", 12)),
    ],
)
def test_a_number_in_a_text_is_exact(text, number):
    assert ticks([text, "1"]) == [Fraction(number), 1]


def test_numbers_of_every_type_and_unit():
    exact = [Fraction(f"1600000000.{part}") for part in ("000", "123", "999")]
    millis = [int(number * 1000) for number in exact]
    for dtype in (pl.Int64, pl.UInt64, pl.Int128, pl.Float64, pl.Decimal(38, 0), pl.Decimal(20, 3), pl.String):
        column = pl.Series(millis).cast(dtype)
        assert ticks(column, "ms") == exact, dtype
    for unit, scale in {"us": 10**6, "ns": 10**9}.items():
        assert ticks([int(number * scale) for number in exact], unit) == exact
        assert ticks([str(int(number * scale)) for number in exact], unit) == exact
    assert ticks(pl.Series(["1600000000.123", "0.999"]).cast(pl.Decimal(20, 3))) == [exact[1], Fraction("0.999")]
    assert ticks([1_600_000_000, 7], dtype=pl.Int32) == [1_600_000_000, 7]
    assert ticks([7, None], dtype=pl.UInt8) == [7, None]
    assert ticks([1600000000.1, 1600000000.123456]) == [Fraction("1600000000.1"), Fraction("1600000000.123456")]
    assert ticks([1600000000123.5, float("nan"), float("inf")], "ms") == [Fraction("1600000000.1235"), None, None]


def test_dates_of_every_unit_and_zone():
    when = dt.datetime(2024, 1, 31, 10, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    exact = Fraction(int(when.timestamp()))
    for unit in ("ms", "us", "ns"):
        for zone in ("UTC", "Europe/Berlin", "America/New_York"):
            column = pl.Series([when]).dt.convert_time_zone(zone).dt.cast_time_unit(unit)
            assert ticks(column) == [exact]
    assert ticks([dt.date(2024, 1, 31)]) == [Fraction(DAY)]
    assert ticks(pl.Series(["2024-01-31"], dtype=pl.Categorical)) == [Fraction(DAY)]


@pytest.mark.parametrize("values", [[dt.time(1)], [True], [[1, 2]], [{"a": 1}], [dt.timedelta(1)], [b"1"]])
def test_types_that_hold_no_times_are_refused(tmp_path, values):
    refused(tmp_path, pl.Series(values), match=r"log.parquet: the time column holds")
    refused(tmp_path, pl.Series(values), "data.columns.time_unit=order", match=r"log.parquet: the time column holds")


def test_what_is_finer_than_a_nanosecond_is_refused(tmp_path):
    for values, unit in [
        (["1600000000.0000000001", "1"], "s"),
        (["2024-01-31T10:00:00.0000000001", "2024-01-31"], "s"),
        (["1600000000123456789.5", "1"], "ns"),
        ([0.1 + 1e-12, 0.1], "s"),
        (pl.Series(["1600000000.0000000001"]).cast(pl.Decimal(38, 10)), "s"),
    ]:
        refused(tmp_path, values, f"data.columns.time_unit={unit}", match="line [12]: time .* finer than a nanosecond")


# --- order: the exact instants decide (cases 02, 03) ------------------------------------------

NANOS = st.integers(1_600_000_000 * 10**9, 1_600_000_100 * 10**9)
CLOSE = st.builds(lambda second, nano: (1_600_000_000 + second) * 10**9 + nano, st.integers(0, 2), st.integers(0, 3000))


def iso(nanos, draw):
    minutes = draw(st.sampled_from([0, 0, 120, -330, 345]))
    second, nano = divmod(nanos, 10**9)
    text = (dt.datetime(1970, 1, 1) + dt.timedelta(seconds=second, minutes=minutes)).isoformat(
        draw(st.sampled_from("T "))
    )
    fraction = f".{nano:09d}"
    if draw(st.booleans()):
        fraction = fraction.rstrip("0").rstrip(".")
    sign, minutes = "-" if minutes < 0 else "+", abs(minutes)
    zone = f"{sign}{minutes // 60:02d}{draw(st.sampled_from([':', '']))}{minutes % 60:02d}"
    return text + fraction + (draw(st.sampled_from(["", "Z", zone])) if not minutes else zone)


def number(nanos, draw):
    text = str(Decimal(nanos).scaleb(-9))
    return draw(
        st.sampled_from([text, f"{nanos}e-9", f"{Decimal(nanos).scaleb(-18):.18f}E9", text.rstrip("0").rstrip(".")])
    )


KINDS = {
    "iso": lambda exact, draw: pl.Series([iso(nano, draw) for nano in exact]),
    "iso of one shape": lambda exact, _: pl.from_epoch(pl.Series(exact), "ns").dt.strftime("%FT%T%.9f+00:00"),
    "text numbers": lambda exact, draw: pl.Series([number(nano, draw) for nano in exact]),
    "decimal": lambda exact, _: pl.Series([Decimal(nano).scaleb(-9) for nano in exact], dtype=pl.Decimal(30, 9)),
    "datetime": lambda exact, _: pl.from_epoch(pl.Series(exact), "ns"),
    "formatted": lambda exact, _: pl.from_epoch(pl.Series(exact), "ns").dt.strftime("%d/%m/%Y %H:%M:%S%.9f"),
    "float64": lambda exact, _: pl.Series([nano / 1e9 for nano in exact]),
    "ns": lambda exact, _: pl.Series(exact),
    "us": lambda exact, _: pl.Series([str(nano // 1000) for nano in exact]),
    "uint64": lambda exact, _: pl.Series(exact, dtype=pl.UInt64),
    "order": lambda exact, _: pl.Series([Decimal(nano).scaleb(-12) for nano in exact]).cast(pl.String),
    "order of floats": lambda exact, _: pl.Series([(nano - 16 * 10**17) / 3e17 - 1e-6 for nano in exact]),
}
ARGS = {
    "ns": ["data.columns.time_unit=ns"],
    "us": ["data.columns.time_unit=us"],
    "uint64": ["data.columns.time_unit=ns"],
    "formatted": ["data.columns.time_format=%d/%m/%Y %H:%M:%S.%f"],
    "order": ["data.columns.time_unit=order"],
    "order of floats": ["data.columns.time_unit=order"],
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_prepared_order_is_that_of_the_exact_instants(tmp_path_factory, kind, data):
    exact = data.draw(st.lists(st.one_of(NANOS, CLOSE), min_size=3, max_size=12))
    column = KINDS[kind](exact, data.draw)
    if kind.endswith("floats") or kind == "float64":
        exact = [Fraction(value) for value in column]  # what the file holds, which is coarser
    if kind == "us":
        exact = [nano // 1000 for nano in exact]
    folder = tmp_path_factory.mktemp("order")
    args = [*log(folder, column), *ARGS.get(kind, []), f"data.root={folder}", "data.duplicates=keep"]
    made = prepared.load(prepared.prepare(cfg.load(args).data))
    names = made.items["raw"][:]
    ours = [names[item] for item in made.item]
    assert ours == [f"i{n}" for n in sorted(range(len(exact)), key=lambda n: exact[n])]


def test_case_02_microseconds_of_iso_texts_and_03_milliseconds_of_decimals(tmp_path):
    iso_ = [f"2024-03-01T12:00:00.000{n}00" for n in (4, 3, 2, 1)]
    decimal = pl.Series([Decimal(f"1700000000.{n}00") for n in (4, 3, 2, 1)], dtype=pl.Decimal(20, 3))
    for times in (iso_, decimal):
        made = prepared.load(prepared.prepare(cfg.load([*log(tmp_path, times), f"data.root={tmp_path}"]).data))
        names = made.items["raw"][:]
        assert [names[item] for item in made.item] == ["i3", "i2", "i1", "i0"]
        assert made.time.tolist()[0] % 10**6 == (100 if times is iso_ else 100_000)


# --- a format is said, never guessed (case 04) ------------------------------------------------


def test_case_04_slash_dates_need_their_format(tmp_path):
    us = ["01/02/2024", "02/01/2024", "03/12/2024"]
    assert "data.columns.time_format" in refused(tmp_path, us, match="line 2: time '01/02/2024' is neither")
    first = read(tmp_path, us, "data.columns.time_format=%m/%d/%Y")
    assert first == sorted(first)
    second = read(tmp_path, us, "data.columns.time_format=%d/%m/%Y")
    assert second[1] < second[0] < second[2]
    refused(
        tmp_path,
        [*us, "03/13/2024"],
        "data.columns.time_format=%d/%m/%Y",
        match="line 5: time '03/13/2024' does not follow data.columns.time_format=%d/%m/%Y",
    )


@pytest.mark.parametrize(
    ("form", "text", "seconds"),
    [
        ("%m/%d/%Y %I:%M %p", "01/31/2024 12:05 AM", 300),
        ("%m/%d/%Y %I:%M:%S %p", "01/31/2024 01:00:00 PM", 13 * 3600),
        ("%b %d %Y", "Jan 31 2024", 0),
        ("%d.%m.%Y %H:%M:%S.%f", "31.01.2024 00:00:00.25", "0.25"),
        ("%d.%m.%Y %H:%M:%S%.f", "31.01.2024 00:00:00.000000001", "0.000000001"),
        ("%Y%m%d%H%M%S", "20240131000001", 1),
        ("%d/%m/%y %H:%M %z", "31/01/24 02:00 +0200", 0),
        ("%Y-%m-%d %H", "2024-01-31 02", 7200),
        ("%Y-%m-%d %I %p %z", "2024-01-31 02 PM +0100", 13 * 3600),
        ("%Y%m%d%H%M%S%3f", "20240131000000025", "0.025"),
        ("%d%m%Y", "31012024", 0),
        ("iso", "2024-01-31", 0),
        ("iso", "20240131", 0),
    ],
)
def test_formats_are_followed(form, text, seconds):
    assert ticks([text], form=form) == [Fraction(DAY) + Fraction(seconds)]


@pytest.mark.parametrize("dtype", [pl.Int64, pl.Int32, pl.Float64, pl.Decimal(12, 0), pl.String])
def test_days_as_whole_numbers_follow_a_format_too(dtype):
    assert ticks(pl.Series([20240131, 20240201]).cast(dtype), form="%Y%m%d") == [Fraction(DAY), Fraction(DAY) + 86_400]


@pytest.mark.parametrize("form", ["day", "%H:%M:%f", "%s", "%Y-%m-%d %Z"])
def test_a_format_that_is_none_is_refused(tmp_path, form):
    refused(tmp_path, ["2024-01-31"], f"data.columns.time_format={form}", match=r"time_format='[^']*'")


def test_a_column_of_dates_has_no_format(tmp_path):
    refused(tmp_path, [dt.date(2024, 1, 31)], "data.columns.time_format=%Y", match="remove data.columns.time_format")
    refused(
        tmp_path, ["2024-01-31"], "data.columns.time_format=epoch", match="line 2: time '2024-01-31' is not a number"
    )
    refused(tmp_path, ["1706659200"], "data.columns.time_format=iso", match="line 2: time '1706659200' is neither")


# --- a log as a whole: unit and notation (cases 05, 09) ---------------------------------------


@pytest.mark.parametrize(
    ("value", "form"),
    [
        *(
            (202_401, "%Y%m"),
            (20_240_110, "%Y%m%d"),
            (202_401_102_359, "%Y%m%d%H%M"),
            (20_240_110_235_959, "%Y%m%d%H%M%S"),
        ),
    ],
)
@pytest.mark.parametrize("dtype", [pl.String, pl.Int64, pl.Float64])
@pytest.mark.parametrize("unit", ["s", "ms"])
def test_case_05_days_written_as_numbers_are_refused_with_their_format(tmp_path, value, form, dtype, unit):
    times = pl.Series([value, value + 1 if form == "%Y%m" else value]).cast(dtype)
    told = refused(tmp_path, times, f"data.columns.time_unit={unit}", match=f"line [12]: time .?{value}")
    assert f"data.columns.time_format={form} " in told
    assert read(tmp_path, times.cast(pl.Int64), f"data.columns.time_format={form}")


DAYS = [  # in order of the file; the same days in the layout of a number
    ("%Y%m%d", ["20240131", "20240201", "20240301"], "20240131", 0),
    ("%d%m%Y", ["31012024", "1022024", "01032024"], "31012024", 0),
    ("%m%d%Y", ["1312024", "2012024", "03012024"], "1312024", 0),
    ("%d%m%y", ["310124", "10224", "010324"], "310124", 0),
    ("%y%m%d", ["240131", "240201", "240301"], "240131", 0),
    ("%Y%m%d%H", ["2024013110", "2024020110", "2024030110"], "2024013110", 36_000),
    (
        "%Y%m%d%H%M%S%3f",
        ["20240131100000123", "20240201100000123", "20240301100000123"],
        "20240131100000123",
        36_000.123,
    ),
]


@pytest.mark.parametrize(("form", "values", "first", "seconds"), DAYS)
@pytest.mark.parametrize("odd", [None, "0", "99991231", "20240001", "12", "", "2024"])
@pytest.mark.parametrize("dtype", [pl.String, pl.Int64])
def test_days_written_as_numbers_are_refused_whatever_stands_among_them(
    tmp_path, form, values, first, seconds, odd, dtype
):
    times = pl.Series([*([odd] if odd == "0" else []), *values, *([odd] if odd not in (None, "0") else [])])
    times = times.cast(pl.Int64, strict=False) if dtype == pl.Int64 else times
    told = refused(
        tmp_path, times, match=f"time '?0?{first}'? is .*, as most of them are; set data.columns.time_format="
    )
    assert form in told
    days = pl.Series(values).cast(dtype)
    exact = [Fraction(DAY) + 86_400 * n + Fraction(str(seconds)) for n in (0, 1, 30)]
    assert ticks(days, form=form) == exact


def test_days_are_told_among_many_that_are_unknown(tmp_path):
    told = refused(tmp_path, [0, 20240131, 0, 20240201, 0, 0], match="line 2: time 20240131 is .*, as most of them are")
    assert "data.columns.time_format=%Y%m%d (or" in told
    assert days.layouts(pl.Series([20240131, 20240201, 3])) is not None
    assert days.layouts(pl.Series([20240131, 20240201, 3, 4])) is None  # half are not most


def test_order_numbers_are_no_days(tmp_path):
    for start in (1, 10_000, 100_101, 200_101, 10_010_000, 31_012_000, 20_240_080):
        assert len(read(tmp_path, list(range(start, start + 400)))) == 400
    assert len(read(tmp_path, [101, 102, 103])) == 3
    assert len(read(tmp_path, [1101, 1102, 1103])) == 3


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize(("origin", "name"), [(621_355_968_000_000_000, "NET"), (116_444_736_000_000_000, "Windows")])
def test_counts_of_100_nanoseconds_are_told_with_what_makes_them_microseconds(tmp_path, unit, origin, name):
    times = [origin + (NOW + n) * 10**7 for n in range(3)]
    told = refused(tmp_path, times, f"data.columns.time_unit={unit}", match=f"{name} .*subtract {origin}, divide by 10")
    assert "set data.columns.time_unit=us" in told
    assert read(tmp_path, [(time - origin) // 10 for time in times], "data.columns.time_unit=us")[0] == NOW * 10**6
    assert "drop" not in told
    if unit == "ns":
        assert read(tmp_path, times, "data.columns.time_unit=ns", "data.columns.time_format=epoch")


def test_where_nearly_all_times_cannot_be_they_are_not_to_be_dropped(tmp_path):
    form = "data.columns.time_format=%d/%m/%Y"
    told = refused(
        tmp_path,
        ["31/01/24", "01/02/24"],
        form,
        match=r"a year of two digits; set data.columns.time_format=%d/%m/%y \(and 1",
    )
    assert "drop" not in told
    assert read(tmp_path, ["31/01/24"], "data.columns.time_format=%d/%m/%y") == [int(DAY) * 10**6]
    told = refused(tmp_path, [9 * 10**9] * 20, match="is a future timestamp, as nearly all are")
    assert "drop" not in told


UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@pytest.mark.parametrize("right", UNITS)
@pytest.mark.parametrize("wrong", UNITS)
@pytest.mark.parametrize("dtype", [pl.String, pl.Int64, pl.Float64, pl.Decimal(30, 3)])
@pytest.mark.parametrize("bad", ["refuse", "drop"])
def test_case_09_a_wrong_unit_is_refused_with_the_value_and_the_right_one(tmp_path, right, wrong, dtype, bad):
    times = pl.Series([(NOW + n) * UNITS[right] for n in range(4)]).cast(dtype)
    args = f"data.columns.time_unit={wrong}", f"data.bad_times={bad}"
    if right == wrong:
        assert read(tmp_path, times, *args) == [(NOW + n) * 10**6 for n in range(4)]
        return
    told = refused(tmp_path, times, *args, match="line [12]: time ")
    assert repr(times[0]) in told
    assert told.partition(" (or ")[0].endswith(f"; set data.columns.time_unit={right}")
    assert "2023-11-14T22:13:20" in told


def test_dates_made_from_numbers_in_the_wrong_unit_are_refused(tmp_path):
    told = refused(tmp_path, pl.from_epoch(pl.Series([NOW] * 2), "ns"), match="line 1: time ")
    assert "time_unit=s" in told


def test_one_value_in_another_unit_is_told_with_it(tmp_path):
    told = refused(tmp_path, [NOW, NOW, NOW * 1000], match=f"line 3: time {NOW * 1000} is a future timestamp")
    assert "2023-11-14T22:13:20 if data.columns.time_unit=ms" in told
    assert "data.bad_times=drop" in told


def test_small_numbers_are_order_numbers_with_a_word(tmp_path, capsys):
    assert read(tmp_path, [1, 2, 3, 4]) == [10**6, 2 * 10**6, 3 * 10**6, 4 * 10**6]
    assert "times 1 … 4 lie within 1970 in any unit: taken as order numbers" in capsys.readouterr().err
    assert read(tmp_path, ["0", "1", "2"]) == [0, 10**6, 2 * 10**6]
    assert read(tmp_path, [1, 2], "data.columns.time_format=epoch") == [10**6, 2 * 10**6]
    assert "1 … 2" not in capsys.readouterr().err
    assert read(tmp_path, [20_240_110, 20_240_111], "data.columns.time_format=epoch") == [
        20_240_110 * 10**6,
        20_240_111 * 10**6,
    ]
    assert read(tmp_path, list(range(20_240_080, 20_240_160)))[0] == 20_240_080 * 10**6  # no days: 20240140


def test_order_numbers_leave_the_order_and_no_times(tmp_path, capsys):
    args = [*log(tmp_path, ["10", "9", "-1", "9.5", "1e3"]), "data.columns.time_unit=order", f"data.root={tmp_path}"]
    raw = sources.read(cfg.load(args).data)
    assert not raw.has_time
    assert raw.interactions["item"].to_list() == ["i2", "i1", "i3", "i0", "i4"]
    assert "2 rows came before one above them" in capsys.readouterr().err
    unit = "data.columns.time_unit=order"
    refused(tmp_path, ["1", "x"], unit, match="line 3: time 'x' is not a number")
    refused(tmp_path, ["1", ""], unit, match="line 3: time '?.* is no order number")
    refused(tmp_path, ["1", "0.0000000000000000001"], unit, match="line 3: .* too many digits")
    refused(tmp_path, ["1", "1e30"], unit, match="line 3: .* too many digits")
    refused(tmp_path, ["1"], unit, "data.columns.time_format=%Y", match="remove data.columns.time_format")


# --- rows: missing, unknown, before, ahead (cases 09, 33) -------------------------------------

BAD = [
    *[
        (text, "missing")
        for text in ("", " ", "NaN", "nan", "inf", "-Infinity", "null", "NULL", "None", "\\N", "NaT", "N/A")
    ],
    *[(text, "1970") for text in ("0", "0.0", "1", "86400")],
    *[(text, "negative") for text in ("-1", "-1.5", "-1e30")],
    *[(text, "future") for text in ("9999999999", "1e300", "99999999999999999999999999")],
]


@pytest.mark.parametrize(("text", "why"), BAD)
def test_a_time_that_cannot_be_is_named_with_its_line_or_dropped_and_counted(tmp_path, text, why):
    times = [f"{NOW}", f"{NOW + 1}", f"{NOW + 2}", text]
    told = refused(tmp_path, times, match=f"line 5: time .*{why}")
    assert "data.bad_times=drop" in told
    raw = sources.read(cfg.load([*log(tmp_path, times), "data.bad_times=drop"]).data)
    assert raw.interactions["time"].to_list() == [(NOW + n) * 10**6 for n in range(3)]
    assert raw.dropped["bad timestamps"] == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *(
            ("0000-00-00 00:00:00", "missing"),
            ("1970-01-01T00:00:00Z", "1970"),
            ("1970-01-01T00:00:00+02:00", "negative"),
        ),
        *(("0001-01-01", "negative"), ("9999-12-31T23:59:59.999999999", "future"), ("2262-04-12T00:00:00.5", "future")),
    ],
)
def test_a_date_that_cannot_be_is_named_or_dropped(tmp_path, text, why):
    times = ["2024-01-31", "2024-01-31", "2024-01-31", text]
    refused(tmp_path, times, match=f"line 5: time .*{why}")
    assert len(read(tmp_path, times, "data.bad_times=drop")) == 3


def test_numbers_that_cannot_be_are_shown_as_they_stand(tmp_path):
    nan = float("nan")
    refused(tmp_path, [NOW * 1.0, nan], match="line 2: time nan is a missing")
    refused(tmp_path, [NOW * 1.0, float("inf")], match="line 2: time inf is a missing")
    refused(tmp_path, [NOW * 1.0, None], match="line 2: time None is a missing")
    refused(tmp_path, [NOW, 2**64 - 1], match=f"line 2: time {2**64 - 1} is a future", dtype=pl.UInt64)
    refused(tmp_path, [None, None], match="line 1: time None is a missing", dtype=pl.Null)
    assert read(tmp_path, [nan, NOW + 0.5, None], "data.bad_times=drop") == [NOW * 10**6 + 500_000]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns", "order"])
@pytest.mark.parametrize("others", [0, 3])
def test_numbers_that_a_spreadsheet_has_shortened_are_refused(tmp_path, capsys, unit, others):
    size = UNITS.get(unit, 1)
    short = f"{NOW * size:.2E}"  # 1.70E+12
    times = [str((NOW + n) * size) for n in range(others)] + [short, short]
    keys = f"data.columns.time_unit={unit}"
    told = refused(tmp_path, times, keys, match=f"line {2 + others}: time .* is a number shortened to a power of ten")
    assert repr(short) in told
    raw = sources.read(cfg.load([*log(tmp_path, times), keys, "data.columns.time_format=epoch"]).data)
    assert raw.interactions.height == len(times)
    assert f"2 times such as {short!r}: each is a number shortened" in capsys.readouterr().err
    refused(
        tmp_path, [*times, f"{NOW * size + 1:.18e}"], keys, match=f"line {2 + others}: time .* is a number shortened"
    )


def test_exponents_that_reach_their_unit_are_no_shortened_numbers(tmp_path, capsys):
    java = [f"1.70000000{n}E9" for n in range(1, 9)] + ["1.7E9"]  # it writes doubles as short as may be
    assert read(tmp_path, java) == [(NOW + n) * 10**6 for n in (*range(1, 9), 0)]
    assert read(tmp_path, [f"{NOW + 0.25:.18e}", f"{NOW:.9e}"]) == [NOW * 10**6 + 250_000, NOW * 10**6]
    assert "shortened" not in capsys.readouterr().err
    nano = [f"1.70000000012345{n}e+18" for n in (10, 13)]  # Python's floats: to 100 ns
    read(tmp_path, nano, "data.columns.time_unit=ns")
    assert "one for 10^2 ns or more" in capsys.readouterr().err


WORDS_FOR_NOTHING = ["undefined", "(null)", "<null>", "NULL", "#N/A N/A", "NaT"]


@pytest.mark.parametrize("word", WORDS_FOR_NOTHING)
@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("good", [str(NOW), "2023-11-14T22:13:20"])
def test_every_word_for_no_id_is_one_for_no_time(tmp_path, word, place, good):
    times = [good] * 3
    times.insert(place, word)
    refused(tmp_path, times, match=f"line {place + 2}: time .* is a missing timestamp")
    assert read(tmp_path, times, "data.bad_times=drop") == [NOW * 10**6] * 3


@pytest.mark.parametrize("place", [0, 1, 3])
def test_the_fewer_of_numbers_and_texts_are_blamed(tmp_path, place):
    times = [str(NOW)] * 3
    for text in ("2024-01-31", "\uff11\uff16\uff10\uff10", "soon"):
        mixed = times.copy()
        mixed.insert(place, text)
        assert repr(text) in refused(tmp_path, mixed, match=f"line {place + 2}: time .* is not a number")
    mixed = ["2024-01-31"] * 3
    mixed.insert(place, str(NOW))
    refused(tmp_path, mixed, match=f"line {place + 2}: time '{NOW}' is a number, while most times are texts")


@pytest.mark.parametrize("text", ["1700000000,5", "-1,5", "1,70E+12"])
@pytest.mark.parametrize("others", [[], [str(NOW)] * 2])
def test_a_decimal_comma_is_named(tmp_path, text, others):
    told = refused(tmp_path, [*others, text], match=f"line {len(others) + 2}: time .* has a comma, and so is no number")
    assert repr(text) in told


def test_case_33_float32_seconds_are_told_and_not_made_worse(tmp_path, capsys):
    times = [1600000180.0, 1600000120.0, 1600000060.0, 1600000000.0]
    column = pl.Series(times, dtype=pl.Float32)
    assert read(tmp_path, column) == [int(value) * 10**6 for value in column]
    assert "times near 1600000128 are 128 s apart, as Float32 holds them" in capsys.readouterr().err
    read(tmp_path, pl.Series(times))
    assert "apart" not in capsys.readouterr().err
    read(tmp_path, pl.Series([NOW * 1e9]), "data.columns.time_unit=ns")
    assert "are 256 ns apart, as Float64 holds them" in capsys.readouterr().err


def test_the_report_counts_what_was_dropped(tmp_path):
    args = [*log(tmp_path, [NOW, NOW + 1, NOW + 2, 0, None]), "data.bad_times=drop", f"data.root={tmp_path}"]
    removed = json.loads((prepared.prepare(cfg.load(args).data) / "statistics.json").read_text())["removed"]
    assert (removed["interactions read"], removed["bad timestamps"]) == (5, 2)


def test_the_other_sources_drop_what_cannot_be_too(tmp_path):
    (tmp_path / "u.data").write_text(f"1\t1\t3\t{NOW}\n1\t2\t3\t\n1\t\t3\t{NOW}\n2\t1\t3\t{NOW}\n2\t2\t3\t0\n")
    (tmp_path / "u.item").write_text("".join(f"{i}|a" + "|" * 22 + "\n" for i in (1, 2)))
    args = ["data.source=movielens", f"data.path={tmp_path}"]
    with pytest.raises(ValueError, match=r"u.data, line 3: item None is empty"):
        sources.read(cfg.load(args).data)
    with pytest.raises(ValueError, match=r"u.data, line 2: time None is a missing timestamp"):
        sources.read(cfg.load([*args, "data.missing_ids=drop"]).data)
    raw = sources.read(cfg.load([*args, "data.missing_ids=drop", "data.bad_times=drop"]).data)
    assert raw.interactions.rows() == [("1", "1", NOW * 10**6), ("2", "1", NOW * 10**6)]
    assert (raw.dropped["bad timestamps"], raw.dropped["rows without user or item"]) == (2, 1)


# --- what is told of rows that are out of order, missing, or on days that are not -----------------


@pytest.mark.parametrize("finer", ["", "000"])
def test_rows_moved_into_order_are_counted_however_fine_their_times(tmp_path, finer):
    """The row of ….2 and that of ….1 come behind later ones in the file."""
    times = [f"2024-01-01T00:00:00.00000{n}{finer and '001'}" for n in (3, 2, 4, 1)] + ["2024-01-01T00:00:01"]
    words = ["data.split=leave_one_out", f"data.root={tmp_path}/artefacts"]
    folder = prepared.prepare(cfg.load([*log(tmp_path, times), *words]).data)
    assert json.loads((folder / "statistics.json").read_text())["removed"]["moved into time order"] == 2
    data = prepared.load(folder)
    assert [data.items["raw"][int(n)] for n in data.item] == ["i3", "i1", "i0", "i2", "i4"]


def test_missing_order_numbers_are_refused_or_dropped_and_counted(tmp_path):
    unit = "data.columns.time_unit=order"
    told = refused(tmp_path, ["3", "", "1", "nan", "9"], unit, match="line 3: time None is no order number")
    assert told.count("log.csv") == 1
    assert "set data.bad_times=drop" in told
    args = [*log(tmp_path, ["3", "", "1", "nan", "9"]), unit, "data.bad_times=drop"]
    raw = sources.read(cfg.load(args).data)
    assert (raw.interactions["item"].to_list(), raw.dropped, raw.n_read) == (
        ["i2", "i0", "i4"],
        {"bad timestamps": 2},
        5,
    )
    refused(tmp_path, ["3", "x"], unit, "data.bad_times=drop", match="line 3: time 'x' is not a number")


@pytest.mark.parametrize("text", ["2024-02-30", "2023-02-29T10:00:00", "2024-13-01 10:00:00Z", "2024-01-01 25:00:00"])
def test_a_day_that_is_none_is_called_so(tmp_path, text):
    what = "is no day and time that there is; mend the file"
    assert repr(text) in refused(tmp_path, ["2024-01-01", text, "2024-01-02"], match=f"line 3: time .* {what}")


def test_gmt_is_utc():
    assert ticks(["2024-01-31 00:00:00 GMT", "2024-01-31T10:00:00GMT"]) == [DAY, DAY + 36_000]
