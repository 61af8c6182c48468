"""Ids of an item table in another type than the log's: joined exactly, or refused, never with another item's text."""

from decimal import Decimal

import polars as pl
import pytest

from distrec import config as cfg
from distrec.data.raw import sources


def titles(tmp_path, logged, table, *args, name="items"):
    """The title of each id, of a log with these ids and of this item table."""
    pl.DataFrame({"user": "u", "item": logged, "time": 1_600_000_000}).write_csv(tmp_path / "log.csv")
    for part, frame in enumerate(table if isinstance(table, list) else [table]):
        (tmp_path / name).mkdir(exist_ok=True)
        frame.write_parquet(tmp_path / name / f"{part}.parquet")
    words = ["data.source=table", f"data.path={tmp_path}/log.csv", f"data.items={tmp_path}/{name}", *args]
    return dict(sources.read(cfg.load(words).data).items.rows())


def frame(ids, kind=None):
    return pl.DataFrame({"item": pl.Series(ids, dtype=kind), "title": [f"T{k}" for k in range(len(ids))]})


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        ([7.0, 11.0], pl.Float64),
        ([7.0, 11.0], pl.Float32),
        ([7.0, 11.0], pl.Float16),
        ([7, 11], pl.UInt8),
        ([7, 11], pl.Int128),
        ([Decimal("7.00"), Decimal("11.00")], pl.Decimal(10, 2)),
        (["7", "11"], pl.Categorical),
        ([b"7", b"11"], pl.Binary),
    ],
)
def test_numbers_of_any_type_are_the_ids_of_the_log(tmp_path, ids, kind):
    assert titles(tmp_path, [7, 11], frame(ids, kind)) == {"7": "T0", "11": "T1"}


def test_decimals_have_all_of_their_digits(tmp_path):
    ids = [2**53 + 1, 2**53 + 2]
    table = frame([Decimal(f"{each}.00") for each in ids], pl.Decimal(38, 2))
    assert titles(tmp_path, ids, table) == {str(ids[0]): "T0", str(ids[1]): "T1"}


def test_parts_whose_ids_differ_in_type_join(tmp_path):
    table = [frame([7, 8]), frame([9.0, None]), frame(["10"])]
    found = titles(tmp_path, [7, 8, 9, 10], table, "data.missing_ids=drop")
    assert found == {"7": "T0", "8": "T1", "9": "T0", "10": "T0"}


@pytest.mark.parametrize(
    ("ids", "kind", "words"),
    [
        ([16777216.0, 16777217.0, 16777218.0], pl.Float32, "row 1: item 16777216.0 is too large for Float32"),
        ([1.0, 2.0**53 + 2], pl.Float64, "row 2: item 9007199254740994.0 is too large for Float64"),
        ([1.0, 2.5], pl.Float64, "row 2: item 2.5 is no whole number, and so no id"),
        ([1.0, float("inf")], pl.Float64, "row 2: item inf is no whole number, and so no id"),
        ([1.0, float("nan")], pl.Float64, "row 2: item None (column 'item') is missing or empty"),
        ([Decimal("1.50")], pl.Decimal(10, 2), "row 1: item Decimal('1.50') is no whole number"),
        ([b"\xff\xfe", b"a"], pl.Binary, "column 'item' holds bytes, which are no text; an id is"),
    ],
)
def test_what_may_be_another_id_is_refused_by_its_row(tmp_path, ids, kind, words):
    with pytest.raises(ValueError, match=r"^[^\n]*0\.parquet[^\n]*$") as caught:
        titles(tmp_path, [16777216, 16777217, 16777218, 1], frame(ids, kind), "data.min_joined=0")
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_called_star_is_no_pattern(tmp_path, kind):
    table = pl.DataFrame({"*": ["u"], "item": ["x"], "time": [1_600_000_000]})
    getattr(table, f"write_{kind}")(tmp_path / f"log.{kind}")
    words = ["data.source=table", f"data.path={tmp_path}/log.{kind}", "data.columns.user=*"]
    with pytest.raises(ValueError, match=rf"log.{kind}: the column '\*' is called as all of them"):
        sources.read(cfg.load(words).data)


def test_the_id_may_be_a_folder_s_name(tmp_path):
    for item, title in (("7", "A"), ("8", "B")):
        (tmp_path / f"items/item={item}").mkdir(parents=True)
        pl.DataFrame({"title": [title]}).write_parquet(tmp_path / f"items/item={item}/a.parquet")
    pl.DataFrame({"user": "u", "item": [7, 8], "time": 1_600_000_000}).write_csv(tmp_path / "log.csv")
    words = ["data.source=table", f"data.path={tmp_path}/log.csv", f"data.items={tmp_path}/items"]
    assert dict(sources.read(cfg.load(words).data).items.select("item", "title").rows()) == {"7": "A", "8": "B"}
