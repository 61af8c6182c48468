"""Which rows `data.where` keeps where types, quotes and names are odd: nothing is compared as what it is not."""

import datetime as dt

import polars as pl
import pytest

from distrec import config as cfg
from distrec.data.raw import sources, where

TIMES = [1_600_000_000 + k for k in range(7)]


def kept(tmp_path, values, condition, kind="csv"):
    """The items x0, x1, … that a condition on the column `c` keeps."""
    frame = pl.DataFrame({"user": "u", "item": [f"x{k}" for k in range(len(values))], "time": TIMES[: len(values)]})
    frame = frame.with_columns(c=values if isinstance(values, pl.Series) else pl.Series(values, strict=False))
    getattr(frame, f"write_{kind}")(tmp_path / f"log.{kind}")
    keys = {"data.path": str(tmp_path / f"log.{kind}"), "data.where": condition}
    return sources.read(cfg.load(["data.source=table"], keys).data).interactions["item"].to_list()


CODES = ["007", "7", "abc", "1234567", "20240131", "7.0", "4.50"]


@pytest.mark.parametrize(
    ("condition", "right"),
    [
        ("c in 007, abc", ["x0", "x2"]),
        ("c in 7, abc", ["x1", "x2"]),
        ("c in abc, 1234567", ["x2", "x3"]),
        ("c in 20240131, abc, 4.50", ["x2", "x4", "x6"]),
        ("c in '007', 1234567", ["x0", "x3"]),
        ({"c": ["007", "abc"]}, ["x0", "x2"]),
        ({"c": [7, "abc", 1234567]}, ["x1", "x2", "x3"]),
        ({"c": "007"}, ["x0"]),
    ],
)
def test_numbers_in_a_list_of_texts_are_the_texts_that_were_written(tmp_path, condition, right):
    assert kept(tmp_path, CODES, condition) == right


def test_whole_numbers_are_shown_with_all_of_their_digits():
    assert [each.text for each in where.parse("day >= 20240131 and x in 1234567, 2.5")] == [
        "day >= 20240131",
        "x in 1234567, 2.5",
    ]


@pytest.mark.parametrize("condition", [{"c": "4"}, "c = '4'", "c in '4', 'five'", {"c": ["4", "five"]}])
def test_a_number_that_is_compared_as_a_text_is_told_where_rows_write_it_otherwise(tmp_path, capsys, condition):
    assert kept(tmp_path, ["4", "4.0", "4", "6"], condition) == ["x0", "x2"]
    assert "so that '4' is not '4.0', which some rows have: write numbers alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "condition"),
    [(["4", "5"], {"c": "4"}), (["4", "4.0"], "c = 4"), ([str(2**53), str(2**53 + 1)], f"c = {2**53 + 1}")],
)
def test_no_word_where_no_other_text_is_that_number(tmp_path, capsys, values, condition):
    assert kept(tmp_path, values, condition)
    assert "compares texts" not in capsys.readouterr().err


DAYS = [dt.date(2024, 1, 1), dt.date(2024, 1, 2)]


@pytest.mark.parametrize(
    ("values", "condition"),
    [
        (DAYS, "c >= 2024"),
        (DAYS, "c = 19724"),
        ([dt.datetime(2024, 1, 1)] * 2, "c >= 20240101"),
        ([dt.time(1), dt.time(2)], "c > 1"),
        ([dt.timedelta(1)] * 2, "c > 1"),
        ([dt.timedelta(1)] * 2, "c = 1d"),
        ([["a"], ["b"]], "c = a"),
        ([[4], [5]], "c >= 4"),
        ([{"a": 1}] * 2, "c = 1"),
        ([{"a": 1}] * 2, "c = x"),
    ],
)
def test_a_column_that_is_neither_number_nor_text_is_not_compared_as_one(tmp_path, values, condition):
    with pytest.raises(ValueError, match=r"^[^\n]*log.parquet: data.where \(c .*the column 'c' holds [^\n]*$"):
        kept(tmp_path, values, condition, "parquet")


@pytest.mark.parametrize(
    ("values", "condition"),
    [
        (DAYS, "c = 2024-01-02"),
        (pl.Series(["4", "5"], dtype=pl.Categorical), "c >= 5"),
        (pl.Series([b"4", b"5"]), "c >= 5"),
        (pl.Series(["4.00", "5.00"]).cast(pl.Decimal(10, 2)), "c = 5"),
    ],
)
def test_days_are_compared_as_texts_and_numbers_of_any_type_as_numbers(tmp_path, values, condition):
    assert kept(tmp_path, values, condition, "parquet") == ["x1"]


@pytest.mark.parametrize("name", ["a=b", "x and y", "a.b", "a>b", "in stock"])
def test_a_name_in_quotes_may_hold_signs_and_words(name):
    for quote in "\"'":
        found = where.parse(f"{quote}{name}{quote} = buy")
        assert [(each.column, each.sign, each.values) for each in found] == [(name, "eq", ("buy",))]
