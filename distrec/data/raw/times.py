"""The column `time` of a log: read exactly, judged as a whole and by rows, told in the words of the file.

A log whose numbers are plausible only in another unit, or are days such as 20240131, is refused.  Small numbers that
are plausible in no unit are order numbers: they are accepted, with a word (`data.columns.time_unit=order` says it).
"""

import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from distrec.data.raw import lines
from distrec.data.raw.values import days, instants
from distrec.data.raw.values.instants import PER_SECOND
from distrec.knobs import Data
from distrec.runtime import brief, log

_MODERN = 631_152_000  # seconds; 1990-01-01: what a log is likely to be later than
_DAY, _YEAR = 86_400, 366 * 86_400
_SAMPLE = 1000  # times that are looked at for a look at all
_YEAR_100 = -59_011_459_200  # seconds; what a year of two digits is before


@dataclass(frozen=True)
class Timed:
    """A log with `time` in ticks (i64); without `time`, and in order, where the numbers say nothing but the order."""

    table: pl.DataFrame
    ticks: int  # per second
    dropped: dict[str, int]


def read(table: pl.DataFrame, path: Path, config: Data, unit: str | None = None) -> Timed:
    """Read the column `time` of a log that has `line` beside it.

    `unit`: that of a source whose times are known; None: `data.columns.time_unit` and `time_format` say it.

    Raises: ValueError naming the line and its value as it stands, for what cannot be read or cannot be; the latter
        is dropped and counted with `data.bad_times=drop`.
    """
    columns = config.columns
    form = columns.time_format if unit is None else None
    scale = unit or columns.time_unit
    if form in (None, "epoch") and table["time"].dtype == pl.String:
        _tell_shortened(table, path, scale, form)
    if scale == "order":
        return _in_order(table, path, form, drop=config.bad_times == "drop")
    try:
        value, ticks, faults = instants.ticks(table["time"], scale, form)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    _require_read(table, path, faults)
    _tell_coarse(table["time"], path, scale)
    ahead = int(time.time()) + _DAY
    is_usual = value.is_between(_MODERN * ticks, ahead * ticks).all(ignore_nulls=False)  # in one pass
    if is_usual and not (scale == "ns" and form is None and _is_before(value, days.LAST_TICK)):
        return Timed(table.with_columns(value.alias("time")), ticks, {"bad timestamps": 0})
    judged = _Judged(table.with_columns(tick=value), path, scale, ticks, ahead, unit is None, form)
    kept = judged.rows(drop=config.bad_times == "drop")
    kept = kept.drop("time").rename({"tick": "time"}).select(table.columns)
    return Timed(kept, ticks, {"bad timestamps": table.height - kept.height})


def _is_before(value: pl.Series, limit: int) -> bool:
    high = value.max()
    return isinstance(high, int) and high < limit


def _in_order(table: pl.DataFrame, path: Path, form: str | None, *, drop: bool) -> Timed:
    if form not in (None, "epoch"):
        raise ValueError(f"{path}: data.columns.time_unit=order takes numbers; remove data.columns.time_format")
    try:
        rank, faults = instants.ranks(table["time"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    missing = rank.is_null()
    what = "is no order number; mend the file, or set data.bad_times=drop"
    _require_read(table, path, faults if drop else [*faults, (missing, what)])
    n_missing = int(missing.sum())
    if n_missing:
        table, rank = table.filter(~missing), rank.filter(~missing)
    moved = int((rank.diff() < 0).sum())
    log(f"{path}: sorted by order numbers, {moved:,} rows came before one above them; the log has no times")
    return Timed(
        table.with_columns(rank.alias("time")).sort("time", maintain_order=True).drop("time"),
        1,
        {"bad timestamps": n_missing},
    )


def _require_read(table: pl.DataFrame, path: Path, faults: instants.Faults) -> None:
    for rows, what in faults:
        if rows.any():
            lines.require(table.with_columns(wrong=rows), "time", pl.col("wrong"), path, what)


def _tell_coarse(column: pl.Series, path: Path, unit: str) -> None:
    """Tell of floats that lie further apart than their unit: events between two of them have become equal."""
    if not column.dtype.is_float():
        return
    most = column.fill_nan(None).set(column.is_infinite(), None).cast(pl.Float64).abs().max()
    step = math.ulp(most) * (2**29 if column.dtype == pl.Float32 else 1) if isinstance(most, float) else 0
    if step > 1:
        log(
            f"{path}: times near {most:.0f} are {step:.0f} {unit} apart, as {column.dtype} holds them: events between "
            "two of them are equal and keep the order of the file; write the column as int64"
        )


def _tell_shortened(table: pl.DataFrame, path: Path, unit: str, form: str | None) -> None:
    """Tell of 1.70E+12 and the like, where most such numbers have fewer digits than their unit needs.

    Raises: ValueError where they are more than a second apart, unless `form` says that they are exact.
    """
    step = _steps(table["time"].gather_every(table.height // _SAMPLE + 1)).drop_nulls()
    if not int((step > 0).sum()) > 0.5 * len(step):
        return
    rows = _steps(table["time"]) > 0
    low = min(step.filter(step > 0))
    first = table["time"].filter(rows)[0]
    what = f"is a number shortened to a power of ten, one for 10^{low} {unit} or more, as spreadsheets write long ones"
    if form is None and 10**low > PER_SECOND.get(unit, 1):
        _require_read(
            table,
            path,
            [(rows, f"{what}; write all of its digits (or set data.columns.time_format=epoch, if it is exact)")],
        )
    log(f"{path}: {int(rows.sum()):,} times such as {brief(first)}: each {what}; equal ones keep the order of the file")


def _steps(text: pl.Series) -> pl.Series:
    """The power of ten of the last digit of large numbers that have an exponent, null for all others."""
    parts = text.str.extract_groups(r"^\s*[+-]?[0-9](?:[.]([0-9]*))?[eE][+]?([0-9]{1,4})\s*$").struct.unnest()
    power = parts["2"].cast(pl.Int64)
    return power.set(~power.is_between(6, 18).fill_null(True), None) - parts["1"].str.len_bytes().cast(
        pl.Int64
    ).fill_null(0)


@dataclass(frozen=True)
class _Judged:
    """A log some of whose times may be wrong: `time` as it stands, `tick` as it was read (i64)."""

    table: pl.DataFrame
    path: Path
    unit: str
    ticks: int
    ahead: int  # seconds; the last that may be
    is_named: bool  # the keys of data.columns apply
    form: str | None

    def rows(self, *, drop: bool) -> pl.DataFrame:
        """Refuse, or leave out, the rows whose time cannot be; refuse a log whose unit or notation is another."""
        number, is_number = self._numbers()
        modern = self._share(self.table["tick"] / self.ticks)
        if is_number and self.form is None:
            self._refuse_hundreds(number)
            if modern < 0.5:
                self._refuse_days(number)
        if self.form != "epoch" and modern < 0.5:
            self._refuse_unit(number, is_number)
        tick = pl.col("tick")
        unknown = tick < (_YEAR * self.ticks if modern >= 0.5 else 0)
        faults = {
            "is a missing timestamp": tick.is_null(),
            "is a negative timestamp, before 1970": tick < 0,
            "is a future timestamp": tick > self.ahead * self.ticks,
            "is in 1970, in a log of later years, and so is no known time": unknown,
        }
        for what, wrong in {} if drop else faults.items():
            lines.require(self.table, "time", wrong, self.path, what + self._advice(number, wrong, is_number))
        wrong = pl.any_horizontal(wrong.fill_null(False) for wrong in faults.values())
        kept = self.table.filter(~wrong)
        high = kept["tick"].max()
        if isinstance(high, int) and high < _YEAR * self.ticks and self.form is None and is_number:
            first, last = (self.table["time"].item(place) for place in (0, -1))
            log(
                f"{self.path}: times {first} … {last} lie within 1970 in any unit: taken as order numbers, of whose "
                "distances nothing should be made (data.columns.time_unit=order says so, time_format=epoch that they are times)"
            )
        return kept

    def _numbers(self) -> tuple[pl.Series, bool]:
        """The numbers as they stand, roughly; of dates, the nanoseconds behind them."""
        column = self.table["time"]
        if column.dtype == pl.String and self.form in (None, "epoch"):
            number = column.str.strip_chars().cast(pl.Float64, strict=False)
            if number.is_finite().any():
                return number, True
        if column.dtype.is_numeric() and self.form in (None, "epoch"):
            return column.cast(pl.Float64), True
        return self.table["tick"] / self.ticks * 1e9, False

    def _first(self, rows: pl.Series) -> tuple[dict[str, Any], str]:
        """The first of some rows, and where it is in which file."""
        row = int(rows.fill_null(False).arg_true()[0])
        return self.table.row(row, named=True), lines.place(self.table, row, self.path)

    def _share(self, seconds: pl.Series) -> float:
        """The share of times, those at zero aside, between 1990 and tomorrow."""
        known = seconds.drop_nulls().filter(seconds.drop_nulls() != 0)
        return int(known.is_between(_MODERN, self.ahead).sum()) / max(len(known), 1)

    def _refuse_unit(self, number: pl.Series, is_number: bool) -> None:
        unit = self.unit if is_number else "ns"
        for other, per_second in PER_SECOND.items():
            if other != unit and self._share(number / per_second) > 0.5:
                first = number.is_between(_MODERN * per_second, self.ahead * per_second).fill_null(False)
                row, place = self._first(first)
                said = f"time {brief(row['time'])} is {_when(row['tick'] / self.ticks)}"
                good = f"{_when(number.filter(first).item(0) / per_second)}, if it stands for {other}"
                if not is_number:
                    remedy = f"a number was turned into a date in the wrong unit: write the numbers, and set data.columns.time_unit={other}"
                elif self.is_named:
                    remedy = (
                        f"set data.columns.time_unit={other} (or data.columns.time_format=epoch, if {unit} is right)"
                    )
                else:
                    remedy = f"this source's times stand in {unit}: read it by data.source=table with data.columns.time_unit={other}"
                raise ValueError(f"{place}: {said} in {unit}, as most are, but {good}; {remedy}")

    def _refuse_days(self, number: pl.Series) -> None:
        if found := days.layouts(number):
            names, forms, rows = found
            form = f"data.columns.time_format={' or ='.join(forms)}"
            self._refuse_notation(
                ", or ".join(names),
                f"set {form}" if self.is_named else f"read it by data.source=table with {form}",
                rows,
            )

    def _refuse_hundreds(self, number: pl.Series) -> None:
        if found := days.hundreds_of_nanoseconds(number):
            self._refuse_notation(*found)

    def _refuse_notation(self, what: str, remedy: str, rows: pl.Series) -> None:
        row, place = self._first(rows)
        said = f"time {brief(row['time'])} is {_when(row['tick'] / self.ticks)} in {self.unit}, but {what}"
        more = f" (or data.columns.time_format=epoch, if it counts {self.unit})" if self.is_named else ""
        raise ValueError(f"{place}: {said}, as most of them are; {remedy}{more}")

    def _advice(self, number: pl.Series, wrong: pl.Expr, is_number: bool) -> str:
        """What the first wrong value may be instead, and what to do."""
        rows = self.table.select(wrong.fill_null(False)).to_series()
        if not rows.any():
            return ""
        value = number.filter(rows)[0]
        seconds = self.table["tick"].filter(rows)[0]
        for other, per_second in PER_SECOND.items() if is_number and self.is_named else ():
            if other == self.unit or value is None:
                continue
            if _MODERN * per_second <= value <= self.ahead * per_second:
                said = f" in {self.unit} ({_when(value / per_second)} if data.columns.time_unit={other})"
                return f"{said}; mend the file, or set data.bad_times=drop"
        if "%Y" in (self.form or "") and seconds is not None and seconds < _YEAR_100 * self.ticks:
            form = (self.form or "").replace("%Y", "%y")
            return f": a year of two digits; set data.columns.time_format={form}"
        if int(rows.sum()) > 0.9 * self.table.height and seconds is not None:
            return ", as nearly all are: say what they count, by data.columns.time_unit or data.columns.time_format"
        return "; mend the file, or set data.bad_times=drop"


def _when(seconds: float) -> str:
    if not abs(seconds) < 60_000_000_000:
        return f"the year {1970 + seconds / 31_556_952:,.0f}"
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(seconds))).strftime("%Y-%m-%dT%H:%M:%S")
