"""Histories from every form that the reader of logs takes; each equals the same histories in JSON lines."""

import gzip
import io
import json
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from distrec import config as cfg
from distrec import knobs
from distrec.data import histories, prepared

USERS = {"b": ["i3", "i1", "i2"], "new": ["i2"], "a": ["i5", "i5", "i0"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    text = "".join(f"{user},i{n},{1_600_000_000 + n}\n" for user in "abc" for n in range(6))
    (place / "log.csv").write_text("user,item,time\n" + text)
    args = ["data.source=table", f"data.path={place}/log.csv", f"data.root={place}/art", "data.negatives=0"]
    return prepared.load(prepared.prepare(cfg.load(args).data))


def listed(found, data):
    names = data.items["raw"][:]
    return [
        (user, [names[i] for i in found.item[found.start[n] : found.start[n + 1]]]) for n, user in enumerate(found.user)
    ]


def jsonl(users=USERS):
    return "".join(json.dumps({"user": user, "items": items}) + "\n" for user, items in users.items()).encode()


def columns(**kinds):
    table = pl.DataFrame({"user": list(USERS), "items": list(USERS.values())})
    content = io.BytesIO()
    table.with_columns(pl.col(name).cast(kind) for name, kind in kinds.items()).write_parquet(content)
    return content.getvalue()


def blanks(separator):
    rows = [f"{user}{separator}{' '.join(items)}" for user, items in USERS.items()]
    return "\n".join([f"user{separator}items", *rows]).encode()


CASES = {
    "h.jsonl": jsonl(),
    "H.NDJSON": jsonl(),
    "h.jsonl.gz": gzip.compress(jsonl()),
    "h.jsonl.zst": bytes(pa.compress(jsonl(), codec="zstd", asbytes=True)),
    "bom.jsonl": b"\xef\xbb\xbf" + jsonl().replace(b"\n", b"\r\n"),
    "h[1].parquet": columns(),
    "categories.parquet": columns(user=pl.Categorical, items=pl.List(pl.Categorical)),
    "h.csv": blanks(","),
    "h.TSV": blanks("\t"),
    "h.csv.gz": gzip.compress(blanks(",")),
}


@pytest.mark.parametrize("name", CASES)
def test_case_34_lists_in_every_form(tmp_path, data, name):
    (tmp_path / "h1.parquet").write_bytes(columns()[:10])
    (tmp_path / name).write_bytes(CASES[name])
    found = histories.read(tmp_path / name, data)
    assert listed(found, data) == list(USERS.items())
    assert (found.number >= 0).tolist() == [True, False, True]


def test_case_34_arrays_of_one_width(tmp_path, data):
    table = pl.DataFrame(
        {"user": [1, 2], "items": pl.Series([["i1", "i2"], ["i3", "i3"]], dtype=pl.Array(pl.String, 2))}
    )
    table.write_parquet(tmp_path / "h.parquet")
    assert listed(histories.read(tmp_path / "h.parquet", data), data) == [("1", ["i1", "i2"]), ("2", ["i3", "i3"])]


def test_a_folder_of_parts(tmp_path, data):
    for n, user in ((10, "a"), (2, "new"), (1, "b")):
        (tmp_path / f"{n}.jsonl").write_bytes(jsonl({user: USERS[user]}))
    assert listed(histories.read(tmp_path, data), data) == list(USERS.items())


def test_empty_parts_are_skipped_with_a_word(tmp_path, data, capsys):
    for n, user in enumerate(USERS):
        (tmp_path / f"{n}.csv").write_text(f"user,items\n{user},{' '.join(USERS[user])}\n")
    (tmp_path / "00.csv").write_bytes(b"")
    assert dict(listed(histories.read(tmp_path, data), data)) == USERS
    assert "1 of 4 parts are empty files and are skipped (the first: 00.csv)" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl", "csv.gz"])
@pytest.mark.parametrize("apart", ["10s", "1ns"])
def test_a_log_is_a_file_of_histories_in_the_order_of_its_times(tmp_path, data, kind, apart):
    rows = [(user, item, 10 * n + u) for u, (user, items) in enumerate(USERS.items()) for n, item in enumerate(items)]
    rows = [rows[n] for n in (3, 2, 5, 0, 6, 1, 4)]  # new stands first in the file, b in time
    frame = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    scale, digits = (10**9, 0) if apart == "10s" else (1, 9)
    instant = pl.from_epoch(1_600_000_000 * 10**9 + pl.col("time") * scale, "ns")
    frame = frame.with_columns(time=instant.dt.to_string("%FT%T" + "%.9f" * (digits > 0)))
    content = io.BytesIO()
    {"parquet": frame.write_parquet, "jsonl": frame.write_ndjson}.get(kind, frame.write_csv)(content)
    body = content.getvalue()
    (tmp_path / f"log.{kind}").write_bytes(gzip.compress(body) if kind.endswith("gz") else body)
    assert listed(histories.read(tmp_path / f"log.{kind}", data), data) == list(USERS.items())


def test_a_log_without_times_is_in_order_and_its_columns_have_the_names_of_the_run(tmp_path, data, capsys):
    (tmp_path / "log.csv").write_text("who;what\nz;i3\ny;i1\nz;i2\n")
    config = knobs.Data(source="table", columns=knobs.Columns(user="who", item="what"), separator=";")
    found = histories.read(tmp_path / "log.csv", data, config=config)
    assert listed(found, data) == [("z", ["i3", "i2"]), ("y", ["i1"])]
    assert "its rows are taken to be in order" in capsys.readouterr().err


NUMBERS = {"7": ["1", "2"], "8": ["2"]}


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    place = tmp_path_factory.mktemp("numbered")
    (place / "log.csv").write_text(
        "user,item,time\n" + "".join(f"{u},{i},{i}00000000\n" for u in "78" for i in range(10, 15))
    )
    (place / "log.csv").write_text((place / "log.csv").read_text() + "".join(f"7,{i},1600000000\n" for i in "12"))
    args = [
        "data.source=table",
        f"data.path={place}/log.csv",
        f"data.root={place}/art",
        "data.negatives=0",
        "data.k_core=0",
    ]
    return prepared.load(prepared.prepare(cfg.load(args).data))


@pytest.mark.parametrize("kind", [pl.Float64, pl.Float32, pl.Decimal(12, 2), pl.UInt16, pl.String])
def test_ids_of_lists_are_read_by_the_rule_of_logs(tmp_path, numbered, kind):
    table = pl.DataFrame({"user": [7, 8], "items": [[1, 2], [2]]})
    if kind == pl.String:
        table = pl.DataFrame({"user": ["7.0", "8.0"], "items": [["1.0", " 2.0"], ["2.0"]]})
    table.with_columns(pl.col("user").cast(kind), pl.col("items").cast(pl.List(kind))).write_parquet(
        tmp_path / "h.parquet"
    )
    assert listed(histories.read(tmp_path / "h.parquet", numbered), numbered) == list(NUMBERS.items())


def test_whole_floats_and_blanks_in_lists_of_texts(tmp_path, numbered):
    (tmp_path / "h.jsonl").write_text('{"user": 7.0, "items": [1, 2.0]}\n\n{"user": "8", "items": ["2"]}\n')
    assert listed(histories.read(tmp_path / "h.jsonl", numbered), numbered) == list(NUMBERS.items())
    (tmp_path / "h.csv").write_text("user,items\n7,1  2 \n8,2\n")
    assert listed(histories.read(tmp_path / "h.csv", numbered), numbered) == list(NUMBERS.items())


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"user": ["7", "8"], "items": [["1"], ["2", None]]}, "h.parquet, line 2: items None is no id"),
        ({"user": ["7", None], "items": [["1"], ["2"]]}, "h.parquet, line 2: user None is no id"),
        ({"user": ["7", "8"], "items": [[], ["", "1"]]}, "h.parquet, line 2: items '' is no id"),
        (
            {"user": ["7", "8"], "items": [[1.0], [2.5]]},
            "h.parquet, line 2: items 2.5 is no whole number, and so no id",
        ),
        ({"user": ["7", "8"], "items": [[True], [False]]}, "h.parquet: column 'items' holds Boolean"),
        ({"user": ["7", "8"], "items": ["1 2", "2"]}, "h.parquet: items is a list of item ids, got String"),
    ],
)
def test_an_id_that_is_none_is_named_by_its_line(tmp_path, numbered, rows, words):
    pl.DataFrame(rows).write_parquet(tmp_path / "h.parquet")
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        histories.read(tmp_path / "h.parquet", numbered)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("h.csv", "user,items\na,\"['i1', 'i2']\"\n", "h.csv, line 2: items"),
        ("h.csv", "user,items\na,i1 nowhere\n", "are not in the catalogue"),
        ("h.csv", "user,items\na,\n", "an empty history"),
        ("h.csv", "user,things\na,i1\n", "h.csv, line 1: no column 'items'"),
        ("h.jsonl", '{"user": "a", "items": [true]}\n', "line 1"),
        ("h.txt", "a", ".txt is not known"),
        ("h.parquet", "a", "h.parquet is damaged, or no Parquet file"),
    ],
)
def test_what_is_no_history_is_refused_by_file(tmp_path, data, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        histories.read(tmp_path / name, data)
    assert words in str(caught.value)


def test_an_address_is_refused(data):
    with pytest.raises(ValueError, match=r"^histories=s3://b/h\.jsonl: remote paths are not read"):
        histories.read(Path("s3://b/h.jsonl"), data)


def test_a_log_is_read_by_the_conditions_of_the_run_where_it_has_their_columns(tmp_path, data, capsys):
    config = knobs.Data(source="table", where="event = buy")
    (tmp_path / "log.csv").write_text("user,item,time,event\nz,i3,1600000000,buy\nz,i1,1600000001,view\n")
    assert listed(histories.read(tmp_path / "log.csv", data, config=config), data) == [("z", ["i3"])]
    (tmp_path / "bare.csv").write_text("user,item,time\nz,i3,1600000000\nz,i1,1600000001\n")
    capsys.readouterr()
    assert listed(histories.read(tmp_path / "bare.csv", data, config=config), data) == [("z", ["i3", "i1"])]
    assert "bare.csv has no column 'event': data.where (event = buy) is not applied" in capsys.readouterr().err
