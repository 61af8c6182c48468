"""Tables of any name, packing, encoding and quoting; each is read as it stands, or refused by file and line."""

import csv
import datetime as dt
import gzip
import io
import json
from fractions import Fraction
from functools import partial

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from distrec import config as cfg
from distrec.data import prepared
from distrec.data.files import attributes, paths
from distrec.data.files.delimited import Style, read
from distrec.data.raw import lines, sources, table

LOG = "user,item,time\na,x,1600000000\na,y,1600000001\nb,x,1600000002\n"
ROWS = [("a", "x", 1_600_000_000), ("a", "y", 1_600_000_001), ("b", "x", 1_600_000_002)]


def raw(path, *args, **keys):
    keys = {f"data.{key}": value for key, value in {"path": str(path), **keys}.items()}
    return sources.read(cfg.load(["data.source=table", *args], keys).data)


def rows(path, *args):
    return [(user, item, time // 10**6) for user, item, time in raw(path, *args).interactions.rows()]


def refused(call, *parts):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        call()
    for part in parts:
        assert part in str(caught.value)
    return str(caught.value)


def put(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(columns).write_parquet(path)
    return path


# --- case 01: a path is a path ---------------------------------------------------------------

ODD = ["log[1]", "star*", "what?", "{a,b}", "[!x]", "a b", "#1", "é", "100%", "a::b", "-", "'q'", "**"]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "csv.gz"])
def test_case_01_a_file_of_any_name_is_read_and_no_other(tmp_path, name, kind):
    wrong = pl.DataFrame({"user": ["WRONG"], "item": ["w"], "time": [1]})
    right = pl.DataFrame(ROWS, schema=["user", "item", "time"], orient="row")
    for frame, stem in ((wrong, "log1"), (wrong, "star1"), (wrong, "whata"), (wrong, "a"), (right, name)):
        path = tmp_path / f"{stem}.{kind}"
        write = {
            "parquet": frame.write_parquet,
            "jsonl": frame.write_ndjson,
            "tsv": partial(frame.write_csv, separator="\t"),
        }.get(kind, frame.write_csv)
        content = io.BytesIO()
        write(content)
        path.write_bytes(gzip.compress(content.getvalue()) if kind.endswith("gz") else content.getvalue())
    assert rows(tmp_path / f"{name}.{kind}") == ROWS


@pytest.mark.parametrize("name", ODD)
def test_case_01_items_and_folders_of_any_name(tmp_path, name):
    log = put(tmp_path, f"{name}/log.csv", LOG)
    items = put(tmp_path, f"{name}/{name}.csv", "item,title\nx,Right\n")
    put(tmp_path, "items1.csv", "item,title\nx,Wrong\n")
    assert raw(log, items=str(items)).items.rows() == [("x", "Right")]
    root = tmp_path / f"root {name}"
    args = ["data.source=table", "data.negatives=0"]
    put(tmp_path, f"{name}/log.csv", LOG + "a,z,1600000009\n")
    data = prepared.load(prepared.prepare(cfg.load(args, {"data.path": str(log), "data.root": str(root)}).data))
    assert data.n_users == 2


def test_case_21_a_run_in_a_folder_with_brackets_is_read_and_no_other(tmp_path):
    for name in ("x1", "x[1]"):
        parquet(tmp_path / name / "ranks.parquet", name=[name])
    assert paths.read_parquet(tmp_path / "x[1]" / "ranks.parquet")["name"].to_list() == ["x[1]"]


# --- case 10: separators, encodings, marks ----------------------------------------------------


@pytest.mark.parametrize("separator", [";", "|", "\\t", "tab", " ", "^", "~", ":"])
def test_case_10_any_separator(tmp_path, separator):
    mark = {"\\t": "\t", "tab": "\t"}.get(separator, separator)
    path = put(tmp_path, "log.csv", LOG.replace(",", mark))
    args = {"data.path": str(path), "data.source": "table"}
    assert len(sources.read(cfg.load([], {**args, "data.separator": separator}).data).interactions) == 3
    if mark in ";|\t":
        refused(lambda: sources.read(cfg.load([], args).data), "line 1", f"set data.separator={mark!r}")


@pytest.mark.parametrize("separator", ["::", "", "é", "\n", '"'])
def test_a_separator_is_one_character(tmp_path, separator):
    path = put(tmp_path, "log.csv", LOG)
    args = {"data.path": str(path), "data.source": "table", "data.separator": separator}
    refused(
        lambda: sources.read(cfg.load([], args).data),
        "data.separator",
        "one character" if separator else "is empty; put it in quotes",
    )


def test_a_separator_that_yaml_reads_as_an_empty_block_is_refused(tmp_path):
    path = put(tmp_path, "log.csv", LOG.replace(",", "|"))
    config = put(tmp_path, "c.yaml", f"data:\n  source: table\n  path: {path}\n  separator: |\n  seed: 1\n")
    refused(
        lambda: sources.read(cfg.load([str(config)]).data), "data.separator='' is empty", "(in YAML separator: '|')"
    )
    config.write_text(config.read_text().replace("|\n", "'|'\n"))
    assert len(sources.read(cfg.load([str(config)]).data).interactions) == 3


@pytest.mark.parametrize(("of_log", "of_items"), [(",", ";"), (";", ","), ("|", "\t"), (";", ";")])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16"])
def test_the_item_table_may_have_a_separator_and_an_encoding_of_its_own(tmp_path, of_log, of_items, encoding):
    log = put(tmp_path, "log.csv", LOG.replace(",", of_log).replace("a", "ä").replace("äser", "aser"))
    items = put(tmp_path, "it.csv", "item,title\nx,Été\ny,Zwei\n".replace(",", of_items).encode(encoding))
    words = [f"data.items={items}", *([] if of_log == "," else [f"data.separator={of_log}"])]
    if of_items != of_log:
        message = refused(
            lambda: raw(log, *words),
            "it.csv, line 1",
            "data.items_" if encoding != "utf-8" else "data.items_separator=",
        )
        words.append(f"data.items_separator={of_items}")
        assert "data.separator" not in message
    if encoding != "utf-8":
        refused(lambda: raw(log, *words), "it.csv, line ", "set data.items_encoding")
        words.append(f"data.items_encoding={encoding}")
    assert raw(log, *words).items.rows() == [("x", "Été"), ("y", "Zwei")]


def test_keys_of_the_item_table_are_checked_by_name_before_anything_is_read(tmp_path):
    log, items = put(tmp_path, "log.csv", "no table"), put(tmp_path, "it.csv", "item,title\nx,X\n")
    refused(lambda: raw(log, f"data.items={items}", "data.items_separator=::"), "data.items_separator='::' is not one")
    refused(lambda: raw(log, f"data.items={items}", "data.items_encoding=klingon"), "data.items_encoding='klingon' is")


@pytest.mark.parametrize("mark", [";", "\t", "|", ","])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("first", ["sep={}", '"sep={}"', "\ufeffsep={}"])
def test_the_separator_that_the_first_line_states_for_excel_is_read(tmp_path, mark, end, first):
    text = f"{first.format(mark)}\n{LOG.replace(',', mark)}".replace("\n", end)
    path = put(tmp_path, "log.csv", text)
    assert rows(path) == ROWS
    assert rows(path, f"data.separator={mark}") == ROWS
    path.write_bytes((text + f"b{mark}{mark}1600000003{end}").encode())
    refused(lambda: rows(path), "log.csv, line 6: item", "is missing or empty")
    path.write_bytes((text + f'b{mark}"x"y{mark}1600000003{end}').encode())
    refused(lambda: rows(path), "log.csv, line 6: a quote closes a cell that goes on")
    path.write_bytes(text.replace("item", "thing").encode())
    refused(lambda: rows(path), "log.csv, line 2: no column 'item'; found: user, thing, time")
    path.write_bytes(text.replace("time", "item").encode())
    refused(lambda: rows(path, "data.columns.time=null"), "log.csv, line 2: the header has 'item' 2 times")
    items = put(tmp_path, "items.csv", f"sep={mark}{end}item{mark}title{end}x{mark}X{end}".encode())
    assert raw(put(tmp_path, "log2.csv", LOG), f"data.items={items}").items.rows() == [("x", "X")]


def test_an_item_may_be_called_as_its_column(tmp_path):
    """In a table of one column nothing tells a header from it."""
    items = put(tmp_path, "items.csv", "item\nx\nitem\n")
    log = put(tmp_path, "log.csv", LOG.replace("a,y", "a,item"))
    assert raw(log, f"data.items={items}", "data.text={item}").items["item"].to_list() == ["x", "item"]


NAMES = {
    "latin-1": "Renée",
    "cp1252": "Ren€e",
    "utf-16": "Renée",
    "utf-16-le": "日本",
    "utf-32": "日本",
    "shift_jis": "日本",
    "gb18030": "中文",
    "utf-8-sig": "Renée",
}


@pytest.mark.parametrize("encoding", NAMES)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "csv.gz"])
def test_case_10_any_encoding(tmp_path, encoding, kind):
    text = LOG.replace("b,", NAMES[encoding] + ",")
    if kind == "jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in csv.DictReader(io.StringIO(text)))
    data = text.encode(encoding)
    path = put(tmp_path, f"log.{kind}", gzip.compress(data) if kind.endswith("gz") else data)
    assert rows(path, f"data.encoding={encoding}")[2][0] == NAMES[encoding]


def test_case_10_bytes_of_another_encoding_name_the_line_and_the_key(tmp_path):
    latin = put(tmp_path, "latin.csv", (LOG + "Renée,x,1600000009\n").encode("latin-1"))
    refused(lambda: rows(latin), "latin.csv, line 5: byte b'\\xe9' is not utf-8; set data.encoding (latin-1")
    wide = put(tmp_path, "wide.csv", LOG.encode("utf-16"))
    refused(lambda: rows(wide), "wide.csv, line 1", "set data.encoding=utf-16")
    nameless = put(tmp_path, "nameless.csv", LOG.encode("utf-16-le"))
    refused(lambda: rows(nameless), "line 1: a NUL byte", "data.encoding=utf-16-le")
    refused(lambda: rows(latin, "data.encoding=klingon"), "data.encoding='klingon' is not an encoding")
    refused(lambda: rows(latin, "data.encoding=hex"), "data.encoding='hex' is not an encoding")
    refused(lambda: rows(latin, "data.encoding=ascii"), "line 5: byte b'\\xe9' is not ascii")
    marked = put(tmp_path, "marked.csv", b"\xef\xbb\xbf" + LOG.encode())
    refused(lambda: rows(marked, "data.encoding=latin-1"), "byte-order mark of utf-8; set data.encoding=utf-8")


def test_bytes_of_another_encoding_in_a_column_that_nobody_reads_do_not_matter(tmp_path):
    path = put(tmp_path, "log.csv", b"user,item,time,note\na,x,1600000000,caf\xe9\n")
    assert rows(path) == ROWS[:1]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_case_10_a_byte_order_mark_is_no_text(tmp_path, kind):
    text = LOG if kind == "csv" else '{"user": "a", "item": "x", "time": 1600000000}\n'
    assert rows(put(tmp_path, f"bom.{kind}", b"\xef\xbb\xbf" + text.encode()))[0] == ROWS[0]


# --- case 31: quotes, lines, ragged rows -------------------------------------------------------


def test_case_31_inch_marks_are_read_as_they_stand(tmp_path):
    text = 'item,title\n1,17" screen\n2,"19"" screen"\n3,21" and 22" screens\n4,\'Four\'\n'
    items = put(tmp_path, "items.csv", text)
    found = raw(put(tmp_path, "log.csv", LOG), f"data.items={items}", "data.min_joined=0").items["title"].to_list()
    assert found == ['17" screen', '19" screen', '21" and 22" screens', "'Four'"]


def test_case_31_quotes_of_tsv_are_undone(tmp_path):
    path = put(tmp_path, "log.tsv", '"user"\t"item"\t"time"\n"a ""b"""\t"5"" cable"\t1600000000\n')
    assert rows(path) == [('a "b"', '5" cable', 1_600_000_000)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('item,title\n1,"He" said\n2,b\n', "line 2: a quote closes a cell that goes on behind it"),
        ('item,title\n1,a\n2,b\n3,"He" said\n4,c\n', "line 4: a quote closes a cell that goes on behind it"),
        ('item,title\n1,a\n2,"17 screen\n3,c\n', "line 3: a quote opens a cell that is never closed"),
        ('item,title\n1,a\n2,"17 inch\n3,"x y"\n4,d\n', "line 3: a quoted cell begins, and in line 4"),
        ('item,title\n1,"5\\" cable"\n', "line 2: a quote closes a cell"),
    ],
)
def test_case_31_quotes_that_do_not_match_are_refused_by_line_or_read_as_characters(tmp_path, text, words):
    path = put(tmp_path, "items.csv", text)
    refused(lambda: read(path, None, Style()), f"items.csv, {words}", "data.quoted=false")
    table, line = read(path, None, Style(quoted=False))
    assert table.rows() == [tuple(row.split(",")) for row in text.splitlines()[1:]]
    assert line.to_list() == list(range(2, table.height + 2))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_case_31_a_quoted_line_break_moves_the_line_numbers_behind_it(tmp_path, end):
    text = 'user,item,time\n"a\nb\n",1,1600000000\nc,2,1600000001\n\n"d\n",3,1600000002\ne,4,soon\n'
    path = put(tmp_path, "log.csv", text.replace("\n", end))
    refused(lambda: rows(path), "log.csv, line 9: time 'soon'")
    table, line = read(path, ["user"], Style())
    assert table["user"].to_list() == [f"a{end}b{end}", "c", f"d{end}", "e"]
    assert line.to_list() == [2, 5, 7, 9]


@pytest.mark.parametrize("row", ["a,y,1600000001,more", "a,y", "a", "a,y,1600000001,", "  "])
@pytest.mark.parametrize("before", [1, 300_000])
def test_case_31_a_row_of_too_few_or_too_many_cells_is_refused_by_line(tmp_path, row, before):
    text = "user,item,time\n" + "a,x,1600000000\n" * before + row + "\n" + "b,x,1600000002\n"
    n = row.count(",") + 1
    refused(
        lambda: rows(put(tmp_path, "log.csv", text)), f"log.csv, line {before + 2}: {n} cells, but the header has 3"
    )


def test_lines_are_counted_over_blank_ones_and_blank_ends_cost_nothing(tmp_path, monkeypatch):
    table, line = read(put(tmp_path, "a.csv", "x,y\n1,2\n\n3,4"), None, Style())
    assert (table.height, line.to_list()) == (2, [2, 4])
    monkeypatch.setattr("distrec.data.files.delimited._records", lambda *_: iter([(1, ["x", "y"]), (2, [])]))
    table, line = read(put(tmp_path, "b.csv", "x,y\r\n1,2\r\n3,4\r\n\r\n\n"), None, Style())
    assert (table.height, line.to_list()) == (2, [2, 3])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_end_of_a_line_is_one(tmp_path, end):
    assert rows(put(tmp_path, "log.csv", LOG.replace("\n", end))) == ROWS
    refused(lambda: rows(put(tmp_path, "log.csv", (LOG + "a,b,soon\n").replace("\n", end))), "line 5: time 'soon'")


def test_a_nul_byte_is_refused_by_line(tmp_path):
    refused(lambda: rows(put(tmp_path, "log.csv", LOG + "a\0,x,1600000000\n")), "log.csv, line 5: a NUL byte")


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "csv.gz"])
def test_an_empty_file_is_told_as_such(tmp_path, text, kind):
    data = gzip.compress(text.encode()) if kind.endswith("gz") else text
    refused(lambda: rows(put(tmp_path, f"log.{kind}", data)), f"log.{kind}: the file is empty")


@pytest.mark.parametrize("text", ["user,item,time", "user,item,time\n", "user,item,time\n\n"])
def test_a_header_alone_is_no_interaction(tmp_path, text):
    refused(lambda: rows(put(tmp_path, "log.csv", text)), "no interaction")


def test_case_33_a_header_that_stands_twice_is_refused_where_it_matters(tmp_path):
    path = put(tmp_path, "two.csv", "user,item,time,time\na,x,1600000000,2\n")
    refused(lambda: rows(path), "two.csv, line 1: the header has 'time' 2 times")
    assert rows(put(tmp_path, "other.csv", "user,note,note,item,time\na,1,2,x,1600000000\n")) == ROWS[:1]
    items = put(tmp_path, "items.csv", "item,note,note\nx,1,2\n")
    refused(lambda: raw(put(tmp_path, "log.csv", LOG), f"data.items={items}"), "items.csv", "'note' 2 times")


def test_a_blank_in_a_header_is_named(tmp_path):
    refused(lambda: rows(put(tmp_path, "log.csv", LOG.replace(",item", ", item"))), "' item' has blanks around it")


def test_a_line_of_any_length_is_read_up_to_a_limit(tmp_path):
    rest = "x" * (5 << 20)
    text = "user,item,time,note\n" + f"a,x,1600000000,{rest}\n" * 5
    assert len(rows(put(tmp_path, "log.csv", text))) == 5
    text = f"user,item,time,note\na,x,1600000000,\na,x,1600000000,{rest * 8}\n"
    assert "line 3" in refused(lambda: rows(put(tmp_path, "log.csv", text)), "longer than 16 MiB")


# --- case 34: packings, folders, endings -------------------------------------------------------


def test_case_34_packings_and_upper_case_endings(tmp_path):
    zst = pa.compress(LOG.encode(), codec="zstd", asbytes=True)
    jsonl = "".join(json.dumps(dict(zip(("user", "item", "time"), row, strict=True))) + "\n" for row in ROWS)
    for name, data in {
        "LOG.CSV": LOG,
        "Log.Tsv": LOG.replace(",", "\t"),
        "log.csv.zst": zst,
        "log.CSV.GZ": gzip.compress(LOG.encode()),
        "two.csv.gz": gzip.compress(LOG[:20].encode()) + gzip.compress(LOG[20:].encode()),
        "misnamed.csv": gzip.compress(LOG.encode()),
        "log.NDJSON": jsonl,
        "log.json.zst": pa.compress(jsonl.encode(), codec="zstd", asbytes=True),
    }.items():
        assert rows(put(tmp_path, name, data)) == ROWS, name
    pl.DataFrame(ROWS, schema=["user", "item", "time"], orient="row").write_parquet(tmp_path / "LOG.PARQUET")
    assert rows(tmp_path / "LOG.PARQUET") == ROWS


@pytest.mark.parametrize("pack", [gzip.compress, partial(pa.compress, codec="zstd", asbytes=True)])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_cut_off_packing_is_refused(tmp_path, pack, kind):
    whole = bytes(pack((LOG + "a,x,1600000000\n" * 50_000).encode()))
    name = "log." + kind + (".gz" if pack is gzip.compress else ".zst")
    refused(lambda: rows(put(tmp_path, name, whole[: len(whole) // 2])), name, "is cut off or damaged", "fetch")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("log.zip", b"PK\x03\x04", "unpack it first (unzip log.zip)"),
        ("log.csv.bz2", b"BZh", "unpack it first (bunzip2 log.csv.bz2)"),
        ("log.csv", b"PK\x03\x04rest", "a zip archive or an Excel sheet"),
        ("log.csv", b"PAR1rest", "a Parquet file by its first bytes"),
        ("log.xlsx", b"PK\x03\x04", ".xlsx is not known"),
        ("log.parquet.gz", b"\x1f\x8b", "Parquet packs its columns itself"),
        ("log.parquet", b"user,item,time\n", "is damaged, or no Parquet file"),
        ("log", b"user,item,time\n", "a table is .csv, .tsv, .parquet or .jsonl"),
    ],
)
def test_case_34_what_is_no_table_is_named_rightly(tmp_path, name, data, words):
    refused(lambda: rows(put(tmp_path, name, data)), words)


@pytest.mark.parametrize("path", ["s3://bucket/log.parquet", "gs://b/x.csv", "https://h/log.csv", "hdfs://h:1/x.csv"])
def test_case_34_remote_paths_get_a_clear_no(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    refused(lambda: raw(path), f"data.path={path}: remote paths are not read")
    log = put(tmp_path, "log.csv", LOG)
    refused(lambda: raw(log, f"data.items={path}"), f"data.items={path}: remote paths are not read")


def test_a_folder_whose_name_looks_like_an_address_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "s3:/log.csv", LOG)
    assert rows("s3:/log.csv") == ROWS


def test_case_34_a_folder_of_parts_in_the_order_of_their_numbers(tmp_path):
    for n, row in ((0, ROWS[0]), (2, ROWS[1]), (10, ROWS[2])):
        parquet(tmp_path / f"part/part-{n}.snappy.parquet", time=[row[2]], note=[n], item=[row[1]], user=[row[0]])
    for name in ("_SUCCESS", "_metadata", ".part-0.crc", ".hidden/x.parquet", "_temporary/0/part-9.parquet"):
        put(tmp_path, f"part/{name}", b"?")
    assert rows(tmp_path / "part") == ROWS
    (tmp_path / "part/part-10.snappy.parquet").rename(tmp_path / "part/part-1.snappy.parquet")
    assert rows(tmp_path / "part") == [ROWS[0], ROWS[2], ROWS[1]]
    assert [path.name for path in sources.input_files(cfg.load(["data.source=table"], {"data.path": str(tmp_path / "part")}).data)] == [f"part-{n}.snappy.parquet" for n in (0, 1, 2)]  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_case_34_a_folder_of_texts_is_read_too_and_a_fault_names_its_part(tmp_path, kind):
    for n, row in enumerate([*ROWS, ("b", "", 1_600_000_003)]):
        record = dict(zip(("user", "item", "time"), row, strict=True))
        text = "user,item,time\n" + ",".join(map(str, row)) if kind == "csv" else json.dumps(record)
        put(tmp_path, f"part/part-{n}.{kind}", text)
    line = 2 if kind == "csv" else 1
    refused(lambda: rows(tmp_path / "part"), f"part-3.{kind}, line {line}: item", "is missing or empty")
    (tmp_path / f"part/part-3.{kind}").unlink()
    assert rows(tmp_path / "part") == ROWS


def test_case_34_hive_folders_are_columns(tmp_path):
    for day, event, item in (("2024-01-02", "cart", "z"), ("2024-01-01", "buy it", "x"), ("2024-01-01", "cart", "y")):
        folder = tmp_path / f"part/day={day}/event={event.replace(' ', '%20')}"
        parquet(folder / "part-0.parquet", user=["a"], item=[item])
    args = ("data.columns.time=day",)
    assert [item for _, item, _ in rows(tmp_path / "part", *args)] == ["x", "y", "z"]
    found = raw(tmp_path / "part", *args, "data.where={event: buy it}")
    assert found.interactions["item"].to_list() == ["x"]
    parquet(tmp_path / "part/part-9.parquet", user=["a"], item=["w"])
    refused(lambda: rows(tmp_path / "part", *args), "do not lie in folders of the same columns")


def test_hive_folders_may_name_the_items(tmp_path):
    for item in "xy":
        put(tmp_path, f"items/item={item}/part-0.csv", f"title\nT{item}\n")
    found = raw(put(tmp_path, "log.csv", LOG), f"data.items={tmp_path}/items").items
    assert found.select("item", "title").rows() == [("x", "Tx"), ("y", "Ty")]


def test_a_hive_folder_without_a_value_is_a_missing_value(tmp_path):
    parquet(tmp_path / "part/item=__HIVE_DEFAULT_PARTITION__/0.parquet", user=["a"], time=[1_600_000_000])
    refused(lambda: rows(tmp_path / "part"), "0.parquet", "item None is missing or empty")


def test_parts_of_other_types_go_together_or_are_refused_by_name(tmp_path):
    parquet(tmp_path / "p/0.parquet", user=[1], item=["x"], time=pl.Series([1_600_000_000], dtype=pl.Int32))
    parquet(tmp_path / "p/1.parquet", user=pl.Series([2], dtype=pl.UInt64), item=["y"], time=[1_600_000_001])
    assert rows(tmp_path / "p") == [("1", "x", 1_600_000_000), ("2", "y", 1_600_000_001)]
    parquet(tmp_path / "p/2.parquet", user=[2], item=["y"], time=[1_600_000_001.5])
    refused(lambda: rows(tmp_path / "p"), "2.parquet: its time column is Float64, but", "write all parts with one type")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json.gz", "csv.zst"])
@pytest.mark.parametrize("place", [0, 1, 4])
def test_empty_parts_are_skipped_with_a_word(tmp_path, capsys, kind, place):
    """Spark writes a part for each partition, also of no row: 0 bytes, or a packing of nothing."""
    packed = {"gz": gzip.compress, "zst": lambda data: pa.compress(data, "zstd", asbytes=True)}.get(
        kind.rpartition(".")[2], lambda data: data
    )
    records = iter(ROWS)
    for n in range(5):
        if n in (place, 3):
            put(tmp_path, f"p/part-{n}.{kind}", packed(b"") if n == place else b"")
            continue
        row = next(records, None)
        text = "".join(json.dumps(dict(zip(("user", "item", "time"), row, strict=True))) + "\n" for row in [row] if row)
        text = text if "json" in kind else "user,item,time\n" + ",".join(map(str, row or ())) + "\n"
        put(tmp_path, f"p/part-{n}.{kind}", packed(text.encode()))
    items = put(tmp_path, "i/part-1.csv", "item,title\nx,X\ny,Y\n").parent
    put(tmp_path, "i/part-0.csv", b"")
    found = raw(tmp_path / "p", f"data.items={items}")
    assert [row[:2] for row in found.interactions.rows()] == [row[:2] for row in ROWS]
    assert found.items["title"].to_list() == ["X", "Y"]
    said = capsys.readouterr().err
    assert said.count(f"2 of 5 parts are empty files and are skipped (the first: part-{min(place, 3)}.{kind})") == 1
    assert said.count("1 of 2 parts are empty files and are skipped (the first: part-0.csv)") == 1
    for path in (tmp_path / "p").iterdir():
        path.write_bytes(b"")
    refused(lambda: rows(tmp_path / "p"), f"part-0.{kind}: the file is empty")


def test_a_part_of_parquet_without_bytes_is_damaged(tmp_path):
    parquet(tmp_path / "p/0.parquet", user=["a"], item=["x"], time=[1_600_000_000])
    put(tmp_path, "p/1.parquet", b"")
    refused(lambda: rows(tmp_path / "p"), "1.parquet is damaged, or no Parquet file")


def test_a_field_may_be_absent_from_parts_of_json_lines_but_not_from_all(tmp_path):
    """Spark leaves out what is null, so that a part may lack a field altogether."""
    lines_of = [{"user": user, "item": item, "time": time} for user, item, time in ROWS]
    lines_of[1]["event"] = "buy"
    for n, record in enumerate(lines_of):
        put(tmp_path, f"p/part-{n}.json", json.dumps(record) + "\n")
    found = raw(tmp_path / "p", "data.where=event = buy")
    assert found.interactions["item"].to_list() == ["y"]
    assert found.dropped["dropped by data.where (event is missing)"] == 2
    refused(lambda: raw(tmp_path / "p", "data.where=kind = buy"), "p: no column 'kind'; found: user, item, time, event")
    put(tmp_path, "p/part-1.json", json.dumps({"user": "a", "item": "y"}) + "\n")
    refused(lambda: rows(tmp_path / "p"), "part-1.json, line 1: time None")


def test_links_among_parts_that_lead_nowhere_or_in_a_circle_are_named(tmp_path):
    put(tmp_path, "p/part-0.csv", LOG)
    (tmp_path / "p/part-1.csv").symlink_to("gone.csv")
    refused(lambda: rows(tmp_path / "p"), "p/part-1.csv: a link to gone.csv, which is not there; remove it")
    (tmp_path / "p/part-1.csv").unlink()
    (tmp_path / "p/day=1").symlink_to(tmp_path / "p")
    refused(lambda: rows(tmp_path / "p"), "p/day=1: a link to ", "a folder that it lies in; remove it")
    (tmp_path / "p/day=1").unlink()
    put(tmp_path, "other/part-2.csv", LOG)
    (tmp_path / "p/more").symlink_to(tmp_path / "other")
    assert len(rows(tmp_path / "p")) == 6


def test_ids_beyond_int64_go_together_with_those_of_other_parts(tmp_path):
    parquet(tmp_path / "p/0.parquet", user=pl.Series([2**63 + 5], dtype=pl.UInt64), item=["x"], time=[1_600_000_000])
    parquet(tmp_path / "p/1.parquet", user=[-7], item=["y"], time=pl.Series([1_600_000_001], dtype=pl.UInt64))
    assert rows(tmp_path / "p") == [("9223372036854775813", "x", 1_600_000_000), ("-7", "y", 1_600_000_001)]
    parquet(tmp_path / "p/1.parquet", user=[1], item=["y"], time=pl.Series([2**63 + 9], dtype=pl.UInt64))
    refused(lambda: rows(tmp_path / "p"), "1.parquet, line 1: time 9223372036854775817 is a future timestamp")


def test_a_column_that_stands_twice_in_parquet_is_named_rightly(tmp_path):
    table = pa.table([pa.array([v]) for v in ("a", "x", 1_600_000_000, 1, 2)], ["user", "item", "time", "n", "n"])
    pq.write_table(table, tmp_path / "log.parquet")
    message = refused(
        lambda: rows(tmp_path / "log.parquet"), "log.parquet: the column 'n' stands twice in it; write the"
    )
    assert "damaged" not in message


def test_columns_of_a_sheet_without_name_and_value_are_left_out(tmp_path):
    log = put(tmp_path, "log.csv", LOG)
    for text, wanted in (
        ("item,title,,\nx,X,,\ny,Y,,\n", ["item", "title"]),
        ("item,,title,\nx,,X,\ny,,Y,\n", ["item", "title"]),
        ("item,title,\nx,X,\ny,Y,\n", ["item", "title"]),
        (",item,title\n0,x,X\n1,y,Y\n", ["item", "", "title"]),
    ):
        found = raw(log, f"data.items={put(tmp_path, 'items.csv', text)}").items
        assert found.columns == wanted
        assert found.select("item", "title").rows() == [("x", "X"), ("y", "Y")]
    items = put(tmp_path, "items.csv", "item,title,,\nx,X,,\ny,Y,,note\n")
    refused(lambda: raw(log, f"data.items={items}"), "items.csv, line 3: a value in a column without a name", "has 2")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "holds no part"),
        (["a.parquet", "b.csv"], "of several kinds"),
        (["a.parquet", "notes.txt"], ".txt is not known"),
        (["a.parquet", "_delta_log/0.json"], "a Delta table"),
        (["data/a.parquet", "metadata/v1.metadata.json"], "an Iceberg table"),
    ],
)
def test_a_folder_that_is_no_table_is_refused(tmp_path, names, words):
    (tmp_path / "part").mkdir()
    for name in names:
        put(tmp_path, f"part/{name}", b"x")
    refused(lambda: rows(tmp_path / "part"), "part", words)


def test_parts_without_an_ending_are_known_by_their_first_bytes(tmp_path):
    user, item, time = ([row[i] for row in ROWS] for i in range(3))
    parquet(tmp_path / "part/20240101_0001_abcde", user=user, item=item, time=time)
    assert rows(tmp_path / "part") == ROWS


# --- cases 07 and 08: attributes of any name and depth -----------------------------------------


def test_case_07_attributes_nested_to_any_depth(tmp_path):
    records = [
        {
            "id": "x",
            "title": "X",
            "images": [{"hi": None, "lo": "a"}],
            "details": {"Color": "blue"},
            "tags": ["p", "q"],
        },
        {"id": "y", "title": None, "images": [], "details": {"Size": {"cm": 2}}, "tags": [], "price": 9.5},
        {"id": "z", "details": {"Size": 3}, "price": "from 5", "tags": None, "videos": [[1, 2], []], "ok": True},
    ]
    items = put(tmp_path, "items.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    found = raw(put(tmp_path, "log.csv", LOG), f"data.items={items}", "data.columns.item_key=id").items
    x, y, z = found.rows(named=True)
    assert json.loads(x["images"]) == records[0]["images"]
    assert (x["title"], x["tags"], x["price"], x["item"]) == ("X", "p|q", "", "x")
    assert (y["title"], y["price"], json.loads(y["details"])) == ("", "9.5", {"Size": {"cm": 2}})
    assert (z["price"], json.loads(z["videos"]), z["ok"], z["tags"]) == ("from 5", [[1, 2], []], "true", "")


def test_parquet_attributes_of_every_type(tmp_path):
    table = pl.DataFrame(
        {
            "item": [7, 8],
            "tags": [["a", "b"], None],
            "pair": pl.Series([["a", "b"], ["c", "d"]], dtype=pl.Array(pl.String, 2)),
            "info": [{"a": 1, "b": None}, None],
            "deep": [[{"a": 1}], []],
            "kind": pl.Series(["u", None], dtype=pl.Categorical),
            "price": [9.5, None],
            "old": [b"text", b"caf\xc3\xa9"],
        }
    )
    table.write_parquet(tmp_path / "items.parquet")
    first, second = raw(
        put(tmp_path, "log.csv", LOG), f"data.items={tmp_path}/items.parquet", "data.min_joined=0"
    ).items.rows(named=True)
    assert {key: first[key] for key in ("item", "tags", "pair", "kind", "price", "old")} == {
        "item": "7", "tags": "a|b", "pair": "a|b", "kind": "u", "price": "9.5", "old": "text"
    }  # fmt: skip
    assert json.loads(first["info"]) == {"a": 1, "b": None}
    assert json.loads(first["deep"]) == [{"a": 1}]
    assert (second["tags"], second["info"], second["deep"], second["kind"], second["old"]) == ("", "", "[]", "", "café")


def test_bytes_that_are_no_text_are_left_out_with_a_word(tmp_path, capsys):
    pl.DataFrame({"item": ["x"], "image": [b"\xff\xd8"], "title": ["X"]}).write_parquet(tmp_path / "items.parquet")
    found = raw(put(tmp_path, "log.csv", LOG), f"data.items={tmp_path}/items.parquet").items
    assert found.rows(named=True) == [{"item": "x", "title": "X"}]
    assert "items.parquet: column 'image' holds bytes, which are no text: left out" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_case_08_attributes_of_any_name(tmp_path, kind):
    names = [
        "line",
        "part",
        "raw",
        "text",
        "user",
        "time",
        "",
        "a b",
        "index",
        "start",
        "where line",
        "__x",
        "é",
        "name",
    ]
    frame = pl.DataFrame({"id": ["x"], **{name: [f"of {name}"] for name in names}, "item": ["Thing"]})
    content = io.BytesIO()
    {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[kind](content)
    items = put(tmp_path, f"items.{kind}", content.getvalue())
    args = (f"data.items={items}", "data.columns.item_key=id")
    found = raw(put(tmp_path, "log.csv", LOG), *args).items
    assert found.rows(named=True) == [{"item": "x", **{name: f"of {name}" for name in names}, "item_": "Thing"}]
    refused(lambda: raw(tmp_path / "log.csv", *args, "data.text={item}"), "data.text", "write {item_}")


def test_a_fault_of_the_item_table_names_its_file(tmp_path):
    log, items = put(tmp_path, "log.csv", LOG), put(tmp_path, "items.csv", "item,title\nx,X\n,Nobody\n")
    refused(lambda: raw(log, f"data.items={items}"), "items.csv, line 3: item None (column 'item') is missing or empty")
    refused(lambda: raw(log, f"data.items={items}", "data.columns.item_key=sku"), "items.csv", "no column 'sku'")


# --- case 11: an id is a text or a whole number ------------------------------------------------

NO_IDS = ['["a", "b"]', "[]", '{"id": 1}', "true", "false", "1.5", '"\\ud800"', '"a\\u0000b"']


@pytest.mark.parametrize("value", NO_IDS)
@pytest.mark.parametrize("column", ["user", "item"])
def test_case_11_what_is_no_id_is_refused_by_line(tmp_path, value, column):
    good = '{"user": "u", "item": 1, "time": 1600000000}\n'
    bad = good.replace('"u"' if column == "user" else "1,", value if column == "user" else value + ",")
    refused(lambda: rows(put(tmp_path, "log.jsonl", good * 2 + bad)), f"log.jsonl, line 3: {column} ")
    items = put(tmp_path, "items.jsonl", f'{{"item": 1}}\n{{"item": {value}}}\n')
    refused(lambda: raw(put(tmp_path, "log.csv", LOG), f"data.items={items}"), "items.jsonl, line 2: item ")


@pytest.mark.parametrize("text", ["[a", "true", "{x}", "1.5", "Noon", "007", "é", "a b"])
def test_a_text_that_looks_like_something_else_is_an_id(tmp_path, text):
    row = json.dumps({"user": text, "item": text, "time": 1_600_000_000})
    assert rows(put(tmp_path, "log.jsonl", row)) == [(text, text, 1_600_000_000)]


def test_whole_numbers_are_ids_as_they_are_written(tmp_path):
    text = '{"user": 1.0, "item": 12345678901234567890, "time": 1600000000}\n'
    assert rows(put(tmp_path, "log.jsonl", text)) == [("1", "12345678901234567890", 1_600_000_000)]


@pytest.mark.parametrize("values", [[["a", "b"]], [{"a": 1}], [True]])
def test_case_11_no_ids_in_parquet_either(tmp_path, values):
    parquet(tmp_path / "log.parquet", user=["u"], item=values, time=[1_600_000_000])
    refused(lambda: rows(tmp_path / "log.parquet"), "log.parquet: column 'item' holds", "an id is a text or a whole")


# --- case 26: data.where -----------------------------------------------------------------------

RATED = "user,item,time,rating,event\na,x,1600000000,5,buy\na,y,1600000001,3.5,cart\nb,x,1600000002,4.0,buy\nb,y,1600000003,,view\n"


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("rating >= 4", [0, 2]),
        ("rating>=4", [0, 2]),
        ("rating > 4", [0]),
        ("rating < 4", [1]),
        ("rating <= 4", [1, 2]),
        ("rating = 4", [2]),
        ("rating == 4", [2]),
        ("rating != 4", [0, 1]),
        ("rating in 5, 3.5", [0, 1]),
        ("event = buy", [0, 2]),
        ("event in [buy, cart]", [0, 1, 2]),
        ("event != buy", [1, 3]),
        ("rating >= 4 and event = buy", [0, 2]),
        ("rating >= 3 and rating < 5", [1, 2]),
        ('"event" = "view"', [3]),
        ("item = x", [0, 2]),
        ("{rating: '>= 4'}", [0, 2]),
        ("{rating: 4}", [2]),
        ("{rating: [4, 5]}", [0, 2]),
        ("{event: [buy, view]}", [0, 2, 3]),
        ("{event: buy, rating: '>4'}", [0]),
        ("{event: '!= buy'}", [1, 3]),
        ("{user: a, item: y}", [1]),
        ("rating >= 4 AND event = buy", [0, 2]),
        ("event IN buy, 'cart'", [0, 1, 2]),
        ("event != 'buy and view'", [0, 1, 2, 3]),
        ("event in 'buy, view', cart", [1]),
        ("event in 'x, buy, y', cart", [1]),
        ("event in 'view', \"cart\"", [1, 3]),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_case_26_rows_kept_by_a_column(tmp_path, where, kept, kind):
    frame = pl.read_csv(io.BytesIO(RATED.encode()), glob=False)
    content = io.BytesIO()
    {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[kind](content)
    found = raw(
        put(tmp_path, f"log.{kind}", content.getvalue()), where=yaml.safe_load(where) if where[0] == "{" else where
    )
    assert (found.interactions["time"] // 10**6 - 1_600_000_000).to_list() == kept
    assert sum(found.dropped.values()) == 4 - len(kept)


def test_case_26_what_is_dropped_is_counted_by_its_reason(tmp_path):
    found = raw(put(tmp_path, "log.csv", RATED), "data.where=rating >= 4 and event = buy")
    assert {rule: count for rule, count in found.dropped.items() if "where" in rule} == {
        "dropped by data.where (rating >= 4)": 1,
        "dropped by data.where (rating is missing)": 1,
        "dropped by data.where (event = buy)": 0,
    }


@pytest.mark.parametrize(("value", "kept"), [("true", 1), ("True", 1), ("false", 1)])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_truth_values_are_kept_however_they_are_written(tmp_path, value, kept, kind):
    frame = pl.DataFrame({"user": ["a", "a"], "item": ["x", "y"], "time": [1_600_000_000] * 2, "ok": [True, False]})
    if kind == "csv":
        frame = frame.with_columns(ok=pl.Series(["True", "FALSE"]))
    content = io.BytesIO()
    {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[kind](content)
    found = raw(put(tmp_path, f"log.{kind}", content.getvalue()), f"data.where={{ok: {value}}}")
    assert found.interactions["item"].to_list() == ["x" if value.lower() == "true" else "y"]
    found = raw(tmp_path / f"log.{kind}", where=f"ok != {value}")
    assert found.interactions["item"].to_list() == ["y" if value.lower() == "true" else "x"]


@pytest.mark.parametrize("where", ["code = 9007199254740993", {"code": 9007199254740993}])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_whole_number_is_compared_to_its_last_digit(tmp_path, where, kind):
    frame = pl.DataFrame(
        {
            "user": ["a", "a"],
            "item": ["x", "y"],
            "time": [1_600_000_000] * 2,
            "code": [9007199254740992, 9007199254740993],
        }
    )
    content = io.BytesIO()
    {"csv": frame.write_csv, "parquet": frame.write_parquet}[kind](content)
    assert raw(put(tmp_path, f"log.{kind}", content.getvalue()), where=where).interactions["item"].to_list() == ["y"]


def test_a_value_that_no_row_has_is_told(tmp_path, capsys):
    path = put(tmp_path, "log.csv", RATED)
    raw(path, "data.where=event in buy, crat and rating != 4")
    assert capsys.readouterr().err.count("no row has") == 1
    raw(path, "data.where=event != Buy")
    assert "data.where (event != Buy): no row has event 'Buy'" in capsys.readouterr().err


def test_a_value_that_one_part_has_is_there(tmp_path, capsys):
    (tmp_path / "log").mkdir()
    for n, event in enumerate(("buy", "cart")):
        (tmp_path / f"log/{n}.csv").write_text(f"user,item,time,event\na,x,160000000{n},{event}\n")
    assert len(rows(tmp_path / "log", "data.where=event in buy, cart")) == 2
    assert "no row has" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("stars >= 4", "no column 'stars'; found: user, item, time, rating, event"),
        ("event >= 4", "log.csv, line 2: event 'buy' is no number, but data.where compares it"),
        ("rating >= 6", "data.where leaves no row"),
        ("rating >= high", "'high'"),
        ("rating", "is no condition"),
        ("event = buy or event = cart", "'event = buy or event = cart' is no condition"),
        ("event != view OR rating > 3", "is no condition"),
        ("event != view && rating > 3", "is no condition"),
        ("event != view, rating > 3", "is no condition"),
        ("event != view, cart", "'event != view, cart' is no condition"),
        ("event = buy cart or view", "stands in quotes"),
        ("event not in view", "is no condition"),
        ("not event = view", "is no condition"),
        ("event in buy or cart", "is no condition"),
        ("event != view between buy", "is no condition"),
        ("event != view; rating > 3", "is no condition"),
        ("{event: '!= view and != cart'}", "event '!= view and != cart' is no condition"),
        ("{rating: []}", "an empty list"),
        ("{rating: {a: 1}}", "is no value"),
        ("{rating: null}", "is no value"),
    ],
)
def test_case_26_conditions_that_cannot_be_are_refused(tmp_path, where, words):
    refused(lambda: raw(put(tmp_path, "log.csv", RATED), f"data.where={where}"), words)


def test_case_26_a_column_that_says_how_much_and_is_not_used_is_told(tmp_path, capsys):
    path = put(tmp_path, "log.csv", RATED)
    raw(path)
    assert "log.csv has a column 'rating' that is not used: every row counts as a positive" in capsys.readouterr().err
    raw(path, "data.where=rating >= 4")
    assert "'event' that is not used" in capsys.readouterr().err
    raw(path, "data.where=rating >= 4 and event = buy")
    assert "not used" not in capsys.readouterr().err


def test_rows_that_are_not_kept_may_be_wrong(tmp_path):
    path = put(tmp_path, "log.csv", RATED + ",,never,1,view\n")
    assert len(rows(path, "data.where=rating >= 4")) == 2


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_header_between_the_rows_is_refused(tmp_path, ending):
    text = "user,item\na,x\nuser,y\nuser,item\nb,x\n".replace(",", "," if ending == "csv" else "\t")
    path = put(tmp_path, f"log.{ending}", text)
    refused(lambda: raw(path, "data.columns.time=null"), f"log.{ending}, line 4: the header again (user, item)")
    path.write_text(text.replace("\nuser", "\n\ufeffuser"))
    refused(lambda: raw(path, "data.columns.time=null"), f"log.{ending}, line 4: the header again (user, item)")


def test_a_name_with_one_sign_of_a_pattern_is_a_name(tmp_path):
    log, items = put(tmp_path, "log.csv", LOG), put(tmp_path, "items.csv", "item,^rank,price$\nx,1,2\ny,3,4\n")
    found = raw(log, f"data.items={items}", "data.text={item}").items
    assert found.select("^rank", "price$").rows() == [("1", "2"), ("3", "4")]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_name_that_reads_like_a_pattern_is_refused(tmp_path, kind):
    frame = pl.DataFrame({"user": ["a"], "item": ["x"], "time": [1_600_000_000], "^user$": ["b"]})
    content = io.BytesIO()
    {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[kind](content)
    path = put(tmp_path, f"log.{kind}", content.getvalue())
    assert raw(path).interactions["user"].to_list() == ["a"]
    refused(
        lambda: raw(path, "data.columns.user=^user$"), f"log.{kind}: the column '^user$' begins with ^ and ends with $"
    )
    refused(lambda: raw(path, f"data.items={path}"), "'^user$'")


# --- case 27: a log without times --------------------------------------------------------------


def test_case_27_a_log_without_times_is_in_order(tmp_path):
    path = put(tmp_path, "log.csv", "user,item\na,z\nb,x\na,y\na,x\na,z\nb,q\nb,p\n")
    assert "data.columns.time=null if the rows are in order" in refused(lambda: raw(path), "no column 'time'")
    args = {"data.path": str(path), "data.root": str(tmp_path / "art"), "data.columns.time": None}
    data = prepared.load(prepared.prepare(cfg.load(["data.source=table", "data.negatives=0"], args).data))
    names, users = data.items["raw"][:], data.users["raw"][:]
    order = {users[u]: [names[i] for i in data.item[data.start[u] : data.start[u + 1]]] for u in range(2)}
    assert order == {"a": ["z", "y", "x", "z"], "b": ["x", "q", "p"]}


# --- blocks ------------------------------------------------------------------------------------


def test_json_lines_in_small_blocks_are_the_same(tmp_path, monkeypatch):
    records = [{"item": n, "title": "é" * (n % 7), **({"tags": ["a", "b"]} if n % 3 else {})} for n in range(300)]
    path = put(tmp_path, "items.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\r\n" for r in records) + "\n\n")
    whole, line = attributes.read_json_table(path, "item")
    monkeypatch.setattr(lines, "BLOCK", 100)
    parts, line_ = attributes.read_json_table(path, "item")
    assert whole.select(sorted(whole.columns)).equals(parts.select(sorted(parts.columns)))
    assert line.to_list() == line_.to_list() == list(range(1, 301))
    for n in (0, 150, 299):
        broken = [*map(json.dumps, records[:n]), "", *map(json.dumps, records[n:])]
        refused(lambda: attributes.read_json_table(put(tmp_path, "b.jsonl", "\n".join(broken)), "item"), f"line {n + 1}: a blank")  # fmt: skip  # noqa: B023


def test_the_folders_that_are_columns_are_part_of_what_prepared_data_depends_on(tmp_path):
    made = []
    for day in ("2024-01-01", "2024-01-02"):
        parquet(tmp_path / day / f"day={day}/part-0.parquet", user=["a"], item=["x"])
        made.append(prepared.made_by(cfg.load(["data.source=table"], {"data.path": str(tmp_path / day)}).data))
    assert made[0]["inputs"][0][1] == made[1]["inputs"][0][1]
    assert made[0] != made[1]


def test_case_08_attributes_called_as_what_is_stored_beside_them_are_kept(tmp_path):
    log = put(tmp_path, "log.csv", LOG + "a,z,1600000009\n")
    put(tmp_path, "items.csv", "item,text,raw,text_,title\nx,Blurb,r1,t1,X\ny,,r2,,Y\nz,Z,,,Z\n")
    args = ["data.source=table", "data.negatives=0", f"data.items={tmp_path}/items.csv", f"data.root={tmp_path}/art"]
    config = cfg.load([*args, "data.text={title}: {text}"], {"data.path": str(log)}).data
    items = {row["raw"]: row for row in prepared.load(prepared.prepare(config)).items}
    assert items["x"] == {"raw": "x", "text": "X: Blurb", "text_": "t1", "title": "X", "raw_": "r1", "text__": "Blurb"}
    assert items["y"]["text"] == "Y:"


def test_case_26_the_ratings_of_movielens(tmp_path):
    put(tmp_path, "ratings.dat", "1::10::5::978300760\n1::11::2::978300761\n2::10::4::978300762\n2::11::4::978300763\n")
    put(tmp_path, "movies.dat", "10::One (1975)::Drama\n11::Two (1976)::Drama\n")
    args = ["data.source=movielens", f"data.path={tmp_path}"]
    found = sources.read(cfg.load([*args, "data.where=rating >= 4"]).data)
    assert found.interactions.select("user", "item").rows() == [("1", "10"), ("2", "10"), ("2", "11")]
    assert found.n_read == 4
    assert found.dropped["dropped by data.where (rating >= 4)"] == 1
    refused(
        lambda: sources.read(cfg.load([*args, "data.where=stars >= 4"]).data), "no column 'stars'", "user, item, rating"
    )
    refused(lambda: sources.read(cfg.load([*args, "data.where=rating > 5"]).data), "data.where leaves no row")


@pytest.mark.parametrize("source", ["synthetic", "sequences"])
def test_a_condition_on_what_a_source_does_not_read_is_refused(tmp_path, source):
    put(tmp_path, "sequences.tsv", "user_id\titem_ids\ttimestamps\n1\t5 6 5\t10 20 30\n")
    put(tmp_path, "items.tsv", "item_id\ttitle\n5\tFive\n6\tSix\n")
    keys = {
        "data.source": source,
        "data.where": "rating > 3",
        "data.path": str(tmp_path) if source != "synthetic" else None,
    }
    refused(lambda: sources.read(cfg.load([], keys).data), "data.where", "no column 'rating'")


@pytest.mark.parametrize("name", ["user", "item", "time"])
def test_a_column_of_the_file_goes_before_one_of_its_folders(tmp_path, name):
    columns = dict(zip(("user", "item", "time"), ([value] for value in ROWS[0]), strict=True))
    parquet(tmp_path / f"part/{name}=1/note=x/0.parquet", **columns)
    assert rows(tmp_path / "part", "data.where=note = x") == ROWS[:1]


@pytest.mark.parametrize("blank", ["\r\n", "  \n", "\n"])
def test_a_blank_line_among_json_lines_is_refused_however_it_ends(tmp_path, blank):
    row = '{"user": "a", "item": "x", "time": 1600000000}'
    refused(lambda: rows(put(tmp_path, "log.jsonl", f"{row}\r\n{blank}{row}\r\n")), "log.jsonl, line 2: ")
    assert len(rows(put(tmp_path, "log.jsonl", f"{row}\n{row}\n{blank}{blank}"))) == 2


@pytest.mark.parametrize(
    "names", [("reviewerID", "asin", "unixReviewTime", "overall"), ("user_id", "parent_asin", "timestamp", "rating")]
)
@pytest.mark.parametrize("kind", ["json", "csv"])
def test_case_26_the_ratings_of_amazon(tmp_path, names, kind):
    second = 1_588_687_728 * (1000 if "timestamp" in names else 1)
    rated = [dict(zip(names, ("u", f"i{n}", second, stars), strict=True)) for n, stars in enumerate((5.0, 1.0, 4.0))]
    text = "".join(json.dumps(row) + "\n" for row in rated)
    if kind == "csv":
        text = "\n".join([",".join(names), *(",".join(map(str, row.values())) for row in rated)])
    args = ["data.source=amazon", f"data.path={put(tmp_path, f'Toys.{kind}', text)}"]
    found = sources.read(cfg.load([*args, f"data.where={names[3]} >= 4"]).data)
    assert found.interactions["item"].to_list() == ["i0", "i2"]
    assert found.n_read == 3
    refused(lambda: sources.read(cfg.load([*args, "data.where=stars >= 4"]).data), "no column 'stars'")


LONG = ["{}.123456789", "{}.123456788", "{}.123456787", "{}.123456786"]


@pytest.mark.parametrize(
    "line",
    [
        '{{"user": "u", "item": "i{n}", "time": {t}}}',
        '{{"user":"u","item":"i{n}","time":{t},"more":{{"time":2}}}}',
        '{{"more":{{"time":1.25}},"note":"\\"time\\":7.5,","user":"u","item":"i{n}","time" : {t} }}',
        '{{"user":"u","item":"i{n}","t\\u0069me":{t}}}',
        '{{"user":"u","item":"i{n}","time":"{t}"}}',
    ],
)
@pytest.mark.parametrize(
    "times", [LONG, ["{}.500000004", "{}.500000003", "{}.500000002", "{}.5"], ["{}", "{}.1", *LONG]]
)
def test_numbers_of_json_with_more_digits_than_a_double_are_exact(tmp_path, line, times):
    times = [time.format(1_700_000_000) for time in times]
    path = put(tmp_path, "log.jsonl", "\n".join(line.format(n=n, t=time) for n, time in enumerate(times)))
    raw = table.read(cfg.load(["data.source=table", f"data.path={path}"]).data)
    seconds = [Fraction(tick, raw.ticks) for tick in raw.interactions["time"]]
    assert seconds == [Fraction(time) for time in times]


def test_one_long_number_of_json_far_below_shorter_ones_is_exact(tmp_path):
    rows = [f'{{"user":"u","item":"i","time":{1_700_000_000 + n}.5}}' for n in range(3000)]
    path = put(tmp_path, "log.jsonl", "\n".join([*rows, '{"user":"u","item":"i","time":1700009999.123456789}\n']))
    raw = table.read(cfg.load(["data.source=table", f"data.path={path}"]).data)
    assert Fraction(raw.interactions["time"][-1], raw.ticks) == Fraction("1700009999.123456789")


@pytest.mark.parametrize("row", [1, 3])
@pytest.mark.parametrize(
    "line",
    [
        '{"user":"a","user":"b","item":"x","time":1600000000}',
        '{"user":"a","item":"x","user":null,"time":1600000000,"url":"http://a:1"}',
        '{"user":"a","item":"x","time":1600000000, "user" : "b"}',
    ],
)
def test_a_key_that_stands_twice_in_json_is_refused(tmp_path, row, line):
    good = '{"kind":"user","user":"a","item":"x","time":1600000000,"of":{"user":1},"note":"\\"user\\":"}'
    lines_ = [good] * 4
    assert len(rows(put(tmp_path, "log.jsonl", "\n".join(lines_)))) == 4
    lines_[row - 1] = line
    path = put(tmp_path, "log.jsonl", "\n".join(lines_))
    refused(lambda: rows(path), f"log.jsonl, line {row}: has 'user' 2 times")
    items = put(tmp_path, "items.jsonl", "\n".join(lines_).replace('"user"', '"title"'))
    log = put(tmp_path, "log.csv", "user,item,time\na,x,1600000000\n")
    refused(lambda: rows(log, f"data.items={items}"), f"items.jsonl, line {row}: has 'title' 2 times")


TWICE = ['{"user":"u","item":"a","time":1,"n":1}', '{"user":"u","item":"b","time":2,"n":1,"n":5}', '{"user":"u","item":"c","time":3}']  # fmt: skip


@pytest.mark.parametrize("more", ['{"user":"u","item":"d","time":4}\n', ""])
def test_a_key_that_stands_twice_is_refused_though_another_row_lacks_it(tmp_path, more):
    path = put(tmp_path, "log.jsonl", "\n".join([*TWICE, more]))
    refused(lambda: rows(path, "data.where=n = 1"), "log.jsonl, line 2: has 'n' 2 times (1, 5)")


def test_a_key_that_stands_twice_in_every_row_of_json_is_refused(tmp_path):
    row = '{"user":"a","item":"x","item":"y","time":1600000000}'
    path = put(tmp_path, "log.jsonl", f"{row}\n{row}\n")
    refused(lambda: rows(path), "log.jsonl, line 1: has 'item' 2 times ('x', 'y'); a key stands once")


@pytest.mark.parametrize("word", ["NaN", "-Infinity", "Infinity"])
@pytest.mark.parametrize("name", ["user", "time", "price"])
def test_words_for_no_number_in_json_are_refused_in_plain_words(tmp_path, word, name):
    good = {"user": "a", "item": "x", "time": 1600000000, "price": 1.5}
    bad = json.dumps(good | {name: 0}).replace(f'"{name}": 0', f'"{name}": {word}')
    path = put(tmp_path, "log.jsonl", "\n".join([json.dumps(good)] * 2 + [bad]))
    refused(lambda: rows(path), f"log.jsonl, line 3: malformed JSON ({word} is no JSON; write null)")


def test_a_number_beyond_a_double_is_named_with_its_line(tmp_path):
    path = put(tmp_path, "log.jsonl", '{"user":"a","item":"x","time":1}\n{"user":"a","item":"x","time":1e400}')
    refused(lambda: rows(path), "log.jsonl, line 2: malformed JSON (1e400 is beyond")


def test_nan_in_the_metadata_of_amazon_is_no_text(tmp_path):
    log = '{"reviewerID":"u","asin":"a","unixReviewTime":1600000000}\n'
    put(tmp_path, "Toys.json", log)
    put(tmp_path, "meta_Toys.json", '{"asin":"a","title":NaN,"brand":"B"}\n')
    found = sources.read(cfg.load(["data.source=amazon", f"data.path={tmp_path}"]).data)
    assert found.items.select("title", "brand").rows() == [("", "B")]


@pytest.mark.parametrize("quoted", ["user_id", "parent_asin", "timestamp"])
def test_quoted_cells_of_an_amazon_csv_are_read_without_their_quotes(tmp_path, quoted):
    row = {"user_id": "u", "parent_asin": "a", "rating": "5.0", "timestamp": "1600000000000"}
    odd = {name: f'"{value}"' if name == quoted else value for name, value in row.items()}
    text = "\n".join(",".join(each) for each in (row, row.values(), odd.values()))
    path = put(tmp_path, "Toys.csv", text)
    found = sources.read(cfg.load(["data.source=amazon", f"data.path={path}"]).data)
    assert found.interactions.rows() == [("u", "a", 1_600_000_000 * 10**6)] * 2


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("user", {"$oid": "5f"}, "is an object; an id is a text or a whole number; write the value of '$oid' alone"),
        ("item", {"$numberLong": "7"}, "write the value of '$numberLong' alone"),
        ("time", {"$date": "2024-01-31T00:00:00Z"}, "is an object, and no time; write its value alone"),
        ("time", {"$date": {"$numberLong": "1700000000000"}}, "is an object, and no time; write its value alone"),
    ],
)
@pytest.mark.parametrize("others", [0, 2])
def test_the_objects_that_mongodb_writes_are_named(tmp_path, name, value, why, others):
    good = {"user": "a", "item": "x", "time": 1600000000}
    path = put(tmp_path, "log.jsonl", "\n".join(map(json.dumps, [good] * others + [good | {name: value}])))
    refused(lambda: rows(path), f"log.jsonl, line {others + 1}: {name} ", why)


DAY = dt.timedelta(days=1, seconds=5)


@pytest.mark.parametrize(
    ("values", "right"),
    [
        (pl.Series([1.5, float("nan"), None]), ["1.5", "", ""]),
        (pl.Series([1.5, float("nan"), None], dtype=pl.Float32), ["1.5", "", ""]),
        (pl.Series([[1.5, float("nan"), 2.0], [float("nan")], None]), ["1.5|2.0", "", ""]),
        (pl.Series([[[float("nan")]], [], None]), ["[[null]]", "[]", ""]),
        (pl.Series([DAY, dt.timedelta(0), None], dtype=pl.Duration("ms")), ["P1DT5S", "PT0S", ""]),
        (pl.Series([[DAY, DAY], [], None], dtype=pl.List(pl.Duration("ns"))), ["P1DT5S|P1DT5S", "", ""]),
    ],
)
def test_nan_of_an_attribute_is_nothing_and_a_duration_iso(tmp_path, values, right):
    items = parquet(tmp_path / "items.parquet", item=pl.Series(["x", "y", "z"]), a=values)
    log = put(tmp_path, "log.csv", "user,item,time\na,x,1600000000\n")
    assert raw(log, f"data.items={items}", "data.min_joined=0").items["a"].to_list() == right


@pytest.mark.parametrize("number", ["12345678901234567.0", "1e300", "9007199254740992.0", "-1.2345678901234567e20"])
@pytest.mark.parametrize("name", ["user", "item"])
def test_ids_that_json_writes_as_floats_beyond_2_to_the_53_are_refused(tmp_path, name, number):
    good = '{"user": 123456789012345678, "item": "1234567890123456.0", "time": 1600000000, "user_": 1.5}'
    assert rows(put(tmp_path, "log.jsonl", good))[0][:2] == ("123456789012345678", "1234567890123456")
    same = {"user": "7.0", "item": "9007199254740991.0"}
    exact = good.replace("123456789012345678", "7.0").replace('"1234567890123456.0"', "9007199254740991.0")
    assert rows(put(tmp_path, "log.jsonl", exact))[0][:2] == tuple(value[:-2] for value in same.values())
    bad = {"user": good.replace("123456789012345678", number), "item": good.replace('"1234567890123456.0"', number)}[
        name
    ]
    path = put(tmp_path, "log.jsonl", f"{good}\n{bad}")
    refused(
        lambda: rows(path), f"log.jsonl, line 2: {name} ", "is a float; an id is a text or a whole number; write all"
    )


# --- JSON that is not one object a line; marks and halves of UTF-16 --------------------------------

OBJECTS = [{"user": user, "item": item, "time": time} for user, item, time in ROWS]
DUMPED = [json.dumps(each) for each in OBJECTS]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (json.dumps(OBJECTS), 1, "an array: write one object a line (jq -c '.[]')"),
        ("[\n" + ",\n".join(DUMPED) + "\n]\n", 1, "an array: write one object a line"),
        ("[" + ",\n".join(DUMPED) + "]\n", 1, "an array: write one object a line"),
        (json.dumps(OBJECTS, indent=1), 1, "an array: write one object a line"),
        (",\n".join(DUMPED) + "\n", 1, "remove the comma behind each object"),
        (DUMPED[0] + "\n" + DUMPED[1] + ",\n", 2, "remove the comma behind each object"),
        ("\n".join(json.dumps(each, indent=1) for each in OBJECTS), 1, "goes on in the next line: write one object a"),
        (DUMPED[0] + "\n" + DUMPED[1][:-1] + ",\n" + '"x": 1}\n', 2, "goes on in the next line"),
        ("".join(DUMPED), 1, "several objects in one line: write one a line (jq -c .)"),
        (DUMPED[0] + "\n" + " ".join(DUMPED[1:]) + "\n", 2, "several objects in one line"),
        ("\r".join(DUMPED) + "\r", 1, "its lines end in CR alone: write LF (tr '\\r' '\\n')"),
        (DUMPED[0] + "\n" + DUMPED[1].replace("}", ",}") + "\n", 2, "malformed JSON"),
    ],
)
@pytest.mark.parametrize("name", ["log", "items"])
def test_json_of_another_layout_is_refused_with_the_way_to_lines(tmp_path, text, line, words, name):
    path = put(tmp_path, f"{name}.json", text)
    args = [path] if name == "log" else [put(tmp_path, "log.csv", LOG), f"data.items={path}"]
    refused(lambda: raw(*args), f"{name}.json, line {line}: ", words)


def test_json_of_columns_is_refused_with_the_way_to_rows(tmp_path):
    text = json.dumps({name: {str(n): each[name] for n, each in enumerate(OBJECTS)} for name in OBJECTS[0]})
    words = "the file is one object of columns: write one object a row"
    refused(lambda: raw(put(tmp_path, "log.json", text)), "log.json, line 1: user", words)


@pytest.mark.parametrize(
    ("content", "encoding", "words"),
    [
        (LOG.encode("utf-16-le"), "utf-16", "log.csv: no byte-order mark, which data.encoding=utf-16 needs"),
        (LOG.encode("utf-16")[:-1], "utf-16", "log.csv, line 4: the last character is cut off; fetch the file again"),
        (LOG.encode("utf-16-le"), "utf-8", "line 1: a NUL byte; if the file is UTF-16 set data.encoding=utf-16-le"),
        (LOG.encode("utf-16-be"), "utf-8", "line 1: a NUL byte; if the file is UTF-16 set data.encoding=utf-16-be"),
    ],
)
def test_utf_16_without_a_mark_or_cut_off_is_named(tmp_path, content, encoding, words):
    refused(lambda: raw(put(tmp_path, "log.csv", content), f"data.encoding={encoding}"), words)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-16"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_mark_of_an_encoding_is_no_part_of_the_header(tmp_path, encoding, mark):
    path = put(tmp_path, "log.csv", (mark if encoding != "utf-16" else "").join(["", LOG]).encode(encoding))
    assert rows(path, f"data.encoding={encoding}") == ROWS


@pytest.mark.parametrize(
    ("title", "written", "encoding", "word"),
    [
        ("Café", "utf-8", "latin-1", "are UTF-8 throughout, and two or more wrong letters each in latin-1: set data.encoding=utf-8"),
        ("“Café”", "utf-8", "cp1252", None),  # refused: cp1252 lacks a byte of it
        ("Kō", "utf-8", "ISO-8859-15", "are UTF-8 throughout"),
        ("It’s", "cp1252", "latin-1", "quotes and dashes in cp1252: set data.encoding=cp1252"),
        ("It’s", "cp1252", "cp1252", ""),
        ("Café", "latin-1", "latin-1", ""),
        ("Cafe", "ascii", "latin-1", ""),
        ("Café", "utf-8", "utf-8", ""),
    ],
)  # fmt: skip
def test_an_encoding_that_takes_any_byte_is_doubted_where_the_bytes_are_anothers(
    tmp_path, capsys, title, written, encoding, word
):
    table = put(tmp_path, "items.csv", f"item,title\nx,{title}\ny,T\n".encode(written))
    args = (put(tmp_path, "log.csv", LOG), f"data.items={table}", f"data.items_encoding={encoding}")
    if word is None:
        refused(lambda: raw(*args), "items.csv, line 2: byte")
        return
    raw(*args)
    said = capsys.readouterr().err
    assert said.count("set data.encoding=") == bool(word)
    assert word in said


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_long_names_are_cut_in_a_message(tmp_path, ending):
    frame, content = pl.DataFrame({"item": ["x"], "a" * 70_000: ["b"]}), io.BytesIO()
    {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[ending](content)
    path = put(tmp_path, f"log.{ending}", content.getvalue())
    for words in ([], [f"data.items={path}", "data.columns.item_key=other"]):
        with pytest.raises(ValueError, match="found: ") as error:
            raw(path, *words) if not words else raw(put(tmp_path, "log.csv", RATED), *words)
        assert len(str(error.value)) < 1000
