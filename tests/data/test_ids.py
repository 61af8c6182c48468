"""Ids as people write them: text or whole numbers, and missing where they are missing (cases 06 33)."""

import datetime as dt
import json
from decimal import Decimal

import polars as pl
import pytest

from distrec import config as cfg
from distrec.data import prepared
from distrec.data.raw import ids, sources

NOW = 1_700_000_000
NAN = float("nan")


def log(folder, users, items=None, kind="parquet"):
    users = users if isinstance(users, pl.Series) else pl.Series(users)
    items = pl.Series([f"i{n}" for n in range(len(users))]) if items is None else items
    frame = pl.DataFrame({"user": users, "item": items, "time": [NOW + n for n in range(len(users))]})
    path = folder / f"log.{kind}"
    frame.write_csv(path) if kind == "csv" else frame.write_parquet(path)
    return "data.source=table", f"data.path={path}", "data.negatives=0"


def read(folder, users, *args, kind="parquet"):
    raw = sources.read(cfg.load([*log(folder, users, kind=kind), *args]).data)
    return raw.interactions["user"].to_list()


def refused(*args, match):
    with pytest.raises(ValueError, match=match) as caught:
        sources.read(cfg.load(args).data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "column",
    [
        *(
            pl.Series([1, 23, 2**24 - 1], dtype=kind)
            for kind in (pl.Int32, pl.Int64, pl.UInt64, pl.Int128, pl.Float32, pl.Float64)
        ),
        *(pl.Series([1, 23, 2**24 - 1]).cast(pl.Decimal(20, scale)) for scale in (0, 2)),
        *(
            pl.Series(texts)
            for texts in (["1", "23", "16777215"], ["1.0", "23.0", "16777215.00"], [" 1", "23 ", "\t16777215"])
        ),
        pl.Series(["1", "23", "16777215"], dtype=pl.Categorical),
    ],
    ids=lambda column: str(column.dtype),
)
def test_whole_numbers_of_every_type_are_the_same_ids(tmp_path, column):
    assert read(tmp_path, column) == ["1", "23", "16777215"]


def test_texts_stay_as_they_are_but_for_blanks_around_them(tmp_path, capsys):
    texts = ["007", "1.0", "1.5", "a b", "é", "1e5", "-3", "None of these", "nano"]
    assert read(tmp_path, texts) == texts
    assert "log.parquet" not in capsys.readouterr().err
    assert read(tmp_path, [" u1", "u1", "u1\u00a0"]) == ["u1"] * 3
    assert "column 'user' has blanks around 2 values (' u1' …)" in capsys.readouterr().err
    assert read(tmp_path, ["7.0", "8.0"]) == ["7", "8"]
    assert "7.0 is read as 7" in capsys.readouterr().err
    assert read(tmp_path, ["7.0", "x", "7.5"]) == ["7.0", "x", "7.5"]  # versions, say
    assert read(tmp_path, ["\ufeff9", "9\u200b"]) == ["9", "9"]
    assert read(tmp_path, [2**63, 5]) == [str(2**63), "5"]
    assert read(tmp_path, [2.0**53 - 1, -2.0]) == [str(2**53 - 1), "-2"]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        *((value, "no whole number") for value in (1.5, float("inf"), -0.25)),
        *((value, "too large for Float64") for value in (2.0**53, float(2**53 + 1), 2.0**53 + 2, -1e300)),
        (Decimal("1.5"), "no whole number"),
    ],
)
def test_numbers_that_are_no_ids_are_refused_with_their_line(tmp_path, value, why):
    args = log(tmp_path, [type(value)(1), value, type(value)(2)])
    assert refused(*args, match=f"line 2: user .* {why}").count("log.parquet") == 1
    refused(*args, "data.missing_ids=drop", match=why)


@pytest.mark.parametrize(("kind", "limit"), [(pl.Float16, 2**11), (pl.Float32, 2**24)])
@pytest.mark.parametrize("more", [0, 2])
def test_short_floats_that_stand_for_several_numbers_are_refused(tmp_path, kind, limit, more):
    assert read(tmp_path, pl.Series([1, limit - 1], dtype=kind)) == ["1", str(limit - 1)]
    refused(*log(tmp_path, pl.Series([1, limit + more], dtype=kind)), match=f"line 2: user .* is too large for {kind}")


@pytest.mark.parametrize(
    "values",
    [
        [True, False],
        [["a"], ["b"]],
        [{"a": 1}] * 2,
        [dt.date(2024, 1, 1)] * 2,
        [dt.datetime(2024, 1, 1)] * 2,
        [b"a"] * 2,
    ],
)
def test_types_that_are_no_ids_are_refused(tmp_path, values):
    refused(*log(tmp_path, values), match="column 'user' holds .*; an id is a text or a whole number")
    refused(*log(tmp_path, ["a", "b"], pl.Series(values)), match="column 'item' holds")


@pytest.mark.parametrize(
    ("column", "shown"),
    [
        (pl.Series([7.0, 8.0, 8.0, NAN, NAN]), "nan is missing"),
        (pl.Series([7, 8, 8, None, None]), "None is missing"),
        *((pl.Series(["7", "8", "8", word, word]), f"{word!r} is missing") for word in ("", " ", "\t")),
        *((pl.Series(["7.0", "8.0", "8.0", word, word]), f"{word!r} is ") for word in ("nan", "")),
        *((pl.Series(["7", "8", "8", word, word]), f"{word!r} is a word for a missing value") for word in ids.WORDS),
    ],
)
def test_missing_is_missing(tmp_path, column, shown):
    args = log(tmp_path, column)
    told = refused(*args, match="log.parquet, line 4: user ")
    assert shown in told
    assert "(and 1 more)" in told
    assert "data.missing_ids=drop" in told
    refused(*log(tmp_path, pl.Series(list("abcde")), column), match="log.parquet, line 4: item ")
    raw = sources.read(cfg.load([*log(tmp_path, column), "data.missing_ids=drop"]).data)
    assert raw.interactions["user"].to_list() == ["7", "8", "8"]
    assert raw.dropped["rows without user or item"] == 2


def test_case_33_words_for_nothing_in_a_csv_are_refused_or_kept_on_request(tmp_path, capsys):
    args = log(tmp_path, ["ann", "nan", "nan", "None"], kind="csv")
    told = refused(
        *args, match=r"line 3: user 'nan' is a word for a missing value, .*'nan' in 2 rows, 'None' in 1 rows"
    )
    assert "data.null_words=true" in told
    assert read(tmp_path, ["ann", "nan", "nan", "None"], "data.null_words=true", kind="csv") == [
        "ann",
        "nan",
        "nan",
        "None",
    ]
    assert "'nan' in 2 rows" in capsys.readouterr().err
    refused(*log(tmp_path, ["ann", "nan", ""]), "data.null_words=true", match="line 3: user '' is missing or empty")


def test_case_06_float_ids_match_the_item_table_and_nan_is_no_user(tmp_path):
    rows = [(float(u), float(10 + i), NOW + 60 * i) for u in (7, 8, 9) for i in range(4)]
    nobody = [(NAN, float(10 + i), NOW + i) for i in range(3)]
    (tmp_path / "items.csv").write_text("item,title\n" + "".join(f"{10 + i},Title {i}\n" for i in range(4)))
    args = [
        "data.source=table",
        f"data.path={tmp_path}/log.parquet",
        f"data.items={tmp_path}/items.csv",
        "data.negatives=0",
    ]
    pl.DataFrame(rows + nobody, schema=["user", "item", "time"], orient="row").write_parquet(tmp_path / "log.parquet")
    refused(*args, match="log.parquet, line 13: user nan is missing")
    folder = prepared.prepare(cfg.load([*args, "data.missing_ids=drop", f"data.root={tmp_path}"]).data)
    data = prepared.load(folder)
    assert sorted(data.users["raw"]) == ["7", "8", "9"]
    assert sorted(data.items["raw"]) == ["10", "11", "12", "13"]
    assert sorted(data.items["text"]) == ["Title 0", "Title 1", "Title 2", "Title 3"]
    removed = json.loads((folder / "statistics.json").read_text())["removed"]
    assert removed["rows without user or item"] == 3


@pytest.mark.parametrize("keys", [[10.0, 11.0, NAN], ["10", "11", ""], ["10", "11", "NULL"], [10, 11, None]])
def test_the_key_of_an_item_table_follows_the_same_rule(tmp_path, keys):
    pl.DataFrame({"item": keys, "title": ["A", "B", "C"]}).write_parquet(tmp_path / "items.parquet")
    args = [*log(tmp_path, ["u", "u"], pl.Series([10, 11])), f"data.items={tmp_path}/items.parquet"]
    refused(*args, match="items.parquet, row 3: item ")
    raw = sources.read(cfg.load([*args, "data.missing_ids=drop"]).data)
    assert raw.items.rows() == [("10", "A"), ("11", "B")]
    assert raw.of_items["item rows without an id"] == 1


def test_sequences_follow_the_same_rule(tmp_path):
    (tmp_path / "sequences.tsv").write_text("user_id\titem_ids\ttimestamps\n1\t5 nan\t10 20\n2\t6\t5\n")
    args = ["data.source=sequences", f"data.path={tmp_path}/sequences.tsv"]
    refused(*args, match="line 2: item 'nan' is a word for a missing value")
    assert sources.read(cfg.load([*args, "data.missing_ids=drop"]).data).interactions.height == 2


def parts(folder, *files):
    for n, users in enumerate(files):
        rows = [f"{user},i{n}{k},{NOW + 100 * n + k}" for k, user in enumerate(users)]
        (folder / f"part-{n}.csv").write_text("\n".join(["user,item,time", *rows]))
    return "data.source=table", f"data.path={folder}", "data.negatives=0"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([["1.0", "1.0", "2.0"], ["1", "2"]], "(3 of 5 values): 7.0 is read as 7"),
        ([["1", "2"], ["1.0", "1.0", "2.0"]], "(3 of 5 values): 7.0 is read as 7"),
        ([["7.0", "7", "7.00", "8.0"]], "(3 of 4 values): 7.0 is read as 7"),
        ([["3", "4", "5.0"]], "(1 of 3 values): 7.0 is read as 7"),
        ([["1.0", "2.0"]], "holds whole numbers written as floats: 7.0 is read as 7"),
    ],
)
def test_whole_numbers_written_as_floats_in_some_rows_or_parts_are_one_id(tmp_path, capsys, files, said):
    found = sources.read(cfg.load(parts(tmp_path, *files)).data).interactions["user"].to_list()
    assert found == [user.partition(".")[0] for users in files for user in users]
    assert said in capsys.readouterr().err


def test_floats_among_texts_are_told_where_they_may_be_another(tmp_path, capsys):
    users = ["1.0", "1", "beta", "2.0"]
    assert read(tmp_path, users, kind="csv") == users
    assert "column 'user' has '1' and '1.0', taken as two ids" in capsys.readouterr().err
    read(tmp_path, ["1.0", "2", "beta"], kind="csv")
    assert "taken as two ids" not in capsys.readouterr().err


def test_a_given_split_of_floats_and_whole_numbers_keeps_its_users(tmp_path):
    for name, row in (
        ("train", "1.0,a,1700000000\n1.0,b,1700000001"),
        ("valid", "1,c,1700000002"),
        ("test", "1,d,1700000003"),
    ):
        (tmp_path / f"{name}.csv").write_text(f"user,item,time\n{row}\n")
    raw = sources.read(cfg.load(["data.source=table", f"data.path={tmp_path}", "data.split=given"]).data)
    assert raw.interactions["user"].to_list() == ["1"] * 4


@pytest.mark.parametrize("value", ["1.23457E+11", "1e+16", "1.0E+05", "1,23457E+11", "1.23457E11", "-1.5e+20", "2E+09"])
@pytest.mark.parametrize("others", [["7", "8"], ["7.0", "8.0"], [], ["7.0", "8"]])
def test_numbers_shortened_to_a_power_of_ten_are_no_ids(tmp_path, capsys, value, others):
    told = refused(
        *log(tmp_path, [*others, value]), match=f"line {len(others) + 1}: user .* is shortened to a power of ten"
    )
    assert repr(value) in told
    users = [*others, value, "SKU-1"]
    assert read(tmp_path, users) == users
    assert f"has 1 values such as {value!r}, to which a spreadsheet may have shortened" in capsys.readouterr().err


def test_floats_as_text_beyond_2_to_the_53_are_refused(tmp_path):
    assert read(tmp_path, ["1.0", f"{2**53 - 1}.0"]) == ["1", str(2**53 - 1)]
    refused(*log(tmp_path, ["1.0", f"{2**53}.0"]), match="line 2: user .* is too large for a float")
    refused(*log(tmp_path, ["1.0", f"{2**53 + 2}.0"]), match="line 2: user .* is too large for a float")
    refused(*log(tmp_path, ["1.0", f"{2**130}.0"]), match="line 2: user .* is too large for a float")


@pytest.mark.parametrize(
    "mark", [*"\u200e\u200f\u202a\u202e\u2060\u2064\u2069\u00ad\u061c\u2066\x01\x08\x0e\x1f\x7f\u200c\u200d"]
)
def test_marks_that_nobody_sees_are_told(tmp_path, capsys, mark):
    users = ["u1", f"{mark}u1", f"u1{mark}"]
    assert read(tmp_path, users) == users
    said = capsys.readouterr().err
    assert f"column 'user' has marks that nobody sees in 2 values ({users[1]!r} …)" in said
    assert mark not in said
    inside = [f"u{mark}1"]
    assert read(tmp_path, inside) == inside
    assert ("nobody sees" in capsys.readouterr().err) == (mark not in "\u200c\u200d")
    read(tmp_path, ["\ufeffu1", "\u200bu2", "é.x", "名前"])
    assert "nobody sees" not in capsys.readouterr().err
