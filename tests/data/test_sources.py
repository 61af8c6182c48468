"""Each raw format, from a planted file and (where they are) from the real ones; and every wrong input."""

import gzip
import json
import shlex

import polars as pl
import pytest

from distrec import config as cfg
from distrec.data import prepared
from distrec.data.raw import download, lines, sources


def read(*args):
    return sources.read(cfg.load(args).data)


def rows(raw):
    return raw.interactions.rows()


def prepare(tmp_path, *args):
    return prepared.load(prepared.prepare(cfg.load([f"data.root={tmp_path}/artefacts", *args]).data))


def amazon(tmp_path, *records, meta=(), name="Toys_5.json"):
    (tmp_path / name).write_text("".join(json.dumps(r) + "\n" if isinstance(r, dict) else r for r in records))
    if meta:
        (tmp_path / "meta_Toys.json").write_text("".join(line + "\n" for line in meta))
    return "data.source=amazon", f"data.path={tmp_path}"


def review(user="U", item="I", time=1000, **more):
    return {"reviewerID": user, "asin": item, "unixReviewTime": time, **more}


# --- formats -------------------------------------------------------------------------------


def test_amazon_2014_metadata_are_python_literals_that_run_nothing(tmp_path):
    meta = [
        "{'asin': 'I', 'title': \"Tom's kite\", 'categories': [['Toys', 'Kites']], 'brand': 'B'}",
        "{'asin': 'unused', 'title': 'x'}",
    ]
    raw = read(*amazon(tmp_path, review(), meta=meta))
    assert rows(raw) == [("U", "I", 1000 * 10**6)]
    assert raw.items.rows() == [("I", "Tom's kite", "B", "Toys|Kites")]
    (tmp_path / "meta_Toys.json").write_text("__import__('os').mkdir('" + str(tmp_path / "ran") + "')\n")
    with pytest.raises(ValueError, match="line 1"):
        read("data.source=amazon", f"data.path={tmp_path}")
    assert not (tmp_path / "ran").exists()


def test_amazon_2018_metadata_are_json_and_repeats_are_counted(tmp_path):
    line = json.dumps({"asin": "I", "title": "Kite", "brand": "B", "category": ["Toys", "Kites"]})
    raw = read(*amazon(tmp_path, review(), meta=[line, line]))
    assert raw.items.rows() == [("I", "Kite", "B", "Toys|Kites")] * 2
    data = prepare(
        tmp_path,
        *amazon(tmp_path, *[review(item="I", time=t) for t in (1, 2, 3)], meta=[line, line]),
        "data.k_core=0",
        "data.negatives=0",
        "data.duplicates=keep",
    )
    assert json.loads((data.folder / "statistics.json").read_text())["removed"]["repeated item rows"] == 1


def test_movielens_100k_and_1m_layouts(tmp_path):
    (tmp_path / "u.data").write_text("196\t242\t3\t881250949\n186\t302\t3\t891717742\n")
    cells = ["0"] * 19
    cells[1] = cells[5] = "1"
    (tmp_path / "u.item").write_bytes(
        f"242|Amélie (2001)|01-Jan-2001||url|{'|'.join(cells)}\n302|No genre (1990)||||{'|'.join('0' * 19)}\n".encode(
            "latin-1"
        )
    )
    raw = read("data.source=movielens", f"data.path={tmp_path}")
    assert rows(raw) == [("196", "242", 881250949 * 10**6), ("186", "302", 891717742 * 10**6)]
    assert raw.items.rows(named=True) == [
        {"item": "242", "title": "Amélie", "year": "2001", "category": "Action|Comedy"},
        {"item": "302", "title": "No genre", "year": "1990", "category": ""},
    ]
    one_m = tmp_path / "1m"
    one_m.mkdir()
    (one_m / "ratings.dat").write_text("1::1193::5::978300760\n")
    (one_m / "movies.dat").write_text("1193::One: Flew (1975)::Drama\n")
    raw = read("data.source=movielens", f"data.path={one_m}")
    assert rows(raw) == [("1", "1193", 978300760 * 10**6)]
    assert raw.items["title"].to_list() == ["One: Flew"]
    for folder in (tmp_path, one_m):  # as somebody has written them beside
        (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n9,9,5.0,1147880044\n")
        assert read("data.source=movielens", f"data.path={folder}").interactions["user"].to_list()[0] in ("1", "196")


@pytest.mark.parametrize("name", ["ml-25m", "ml latest", "it's"])
def test_movielens_in_csv_names_the_words_that_read_it(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,296,5.0,1147880044\n1,306,3.5,1147868817\n")
    (folder / "movies.csv").write_text('movieId,title,genres\n296,"Fiction, Pulp (1994)",Crime\n306,Red (1994),Drama\n')
    for place in (folder, folder / "ratings.csv"):
        message = refused(
            "data.source=movielens", f"data.path={place}", match=r"MovieLens 20M and later: read it by data"
        )
        raw = read(*shlex.split(message.partition("read it by ")[2]))
        assert sorted(rows(raw)) == [("1", "296", 1147880044 * 10**6), ("1", "306", 1147868817 * 10**6)]
        assert raw.items["title"].to_list() == ["Fiction, Pulp (1994)", "Red (1994)"]


def test_lastfm_keeps_the_first_tag_of_a_user_and_artist_in_seconds(tmp_path):
    tags = "userID\tartistID\ttagID\ttimestamp\r\n" + "".join(
        f"{u}\t{a}\t7\t{t}000\r\n" for u in range(6) for a, t in [(1, 50), (1, 40), (2, 60), (3, 70)]
    )
    (tmp_path / "user_taggedartists-timestamps.dat").write_text(tags)
    (tmp_path / "artists.dat").write_text("id\tname\turl\tpictureURL\n1\tCafé\tu\tp\n2\tB\tu\tp\n3\tC\tu\tp\n")
    data = prepare(tmp_path, "data.source=lastfm", f"data.path={tmp_path}", "data.k_core=2", "data.negatives=0")
    assert len(data.item) == 18
    assert sorted(set(data.time.tolist())) == [40 * 10**6, 60 * 10**6, 70 * 10**6]
    assert sorted(data.items["title"]) == ["B", "C", "Café"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "jsonl", "csv.gz", "jsonl.gz"])
@pytest.mark.parametrize("time", ["number", "iso"])
def test_any_table_with_named_columns(tmp_path, kind, time):
    when = [1_600_000_000, 1_600_000_060] if time == "number" else ["2020-09-13T12:26:40", "2020-09-13 12:27:40"]
    frame = pl.DataFrame({"customer": ["a", "b, c"], "sku": [1, 2], "at": when, "noise": [0, 0]})
    path = tmp_path / f"log.{kind}"
    writers = {
        "csv": frame.write_csv,
        "tsv": lambda file: frame.write_csv(file, separator="\t"),
        "jsonl": frame.write_ndjson,
        "parquet": frame.write_parquet,
    }
    plain = tmp_path / "plain"
    writers[kind.removesuffix(".gz")](plain)
    path.write_bytes(gzip.compress(plain.read_bytes()) if kind.endswith("gz") else plain.read_bytes())
    raw = read("data.source=table", f"data.path={path}", "data.columns={user: customer, item: sku, time: at}")
    assert rows(raw) == [("a", "1", 1_600_000_000 * 10**6), ("b, c", "2", 1_600_000_060 * 10**6)]


def test_a_table_may_hold_dates_and_other_units(tmp_path):
    frame = pl.DataFrame({"user": ["a"], "item": ["x"], "time": [1_600_000_000_000]})
    frame.with_columns(pl.from_epoch("time", "ms")).write_parquet(tmp_path / "dates.parquet")
    frame.write_parquet(tmp_path / "ms.parquet")
    assert rows(read("data.source=table", f"data.path={tmp_path}/dates.parquet")) == [("a", "x", 1_600_000_000 * 10**6)]
    assert rows(read("data.source=table", f"data.path={tmp_path}/ms.parquet", "data.columns.time_unit=ms")) == [
        ("a", "x", 1_600_000_000 * 10**6)
    ]


def test_times_are_ordered_at_full_resolution(tmp_path):
    rows_ = ["third,900", "first,100", "second,500", "first,300"]
    text = "user,item,time\n" + "".join(
        f"u{u},{i.split(',')[0]},1577836800{i.split(',')[1]}\n" for u in range(3) for i in rows_
    )
    (tmp_path / "log.csv").write_text(text)
    data = prepare(
        tmp_path, "data.source=table", f"data.path={tmp_path}/log.csv", "data.columns.time_unit=ms", "data.negatives=0"
    )
    names = data.items["raw"][:]
    assert [names[i] for i in data.item[:4]] == ["first", "first", "second", "third"]


def test_two_inputs_of_one_name_are_two_inputs(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    (tmp_path / "b/x.csv").write_text("item,title\n1,One\n")
    args = ["data.source=table", f"data.path={tmp_path}/a/x.csv", f"data.items={tmp_path}/b/x.csv", "data.negatives=0"]
    sizes = []
    for n in (4, 5):
        (tmp_path / "a/x.csv").write_text("user,item,time\n" + "".join(f"u,{i},{i}\n" for i in range(n)))
        sizes.append(len(prepare(tmp_path, *args).item))
    assert sizes == [4, 5]


def test_attributes_of_a_jsonl_file_are_read_whole(tmp_path):
    (tmp_path / "x.csv").write_text("user,item,time\n" + "".join(f"u,{i},{i}\n" for i in range(3)))
    (tmp_path / "items.jsonl").write_text(
        '{"item": 1, "title": "One", "tags": ["a", "b"]}\n{"item": 2, "title": "Two", "tags": []}\n'
    )
    args = [
        "data.source=table",
        f"data.path={tmp_path}/x.csv",
        f"data.items={tmp_path}/items.jsonl",
        "data.negatives=0",
    ]
    data = prepare(tmp_path, *args, "data.text={title} [{tags}]")
    assert sorted(data.items["text"]) == ["", "One [a|b]", "Two []"]


def test_sequences_are_taken_as_they_are(tmp_path):
    (tmp_path / "sequences.tsv").write_text(
        "user_id\traw_user\titem_ids\ttimestamps\n1\tA\t5 6 5\t10 20 30\n2\tB\t6\t5\n"
    )
    (tmp_path / "items.tsv").write_text("item_id\traw_item\ttitle\n5\tx\tFive\n6\ty\tSix\n")
    data = prepare(tmp_path, "data.source=sequences", f"data.path={tmp_path}", "data.negatives=0")
    assert len(data.item) == 4
    assert data.n_users == 2
    (tmp_path / "sequences.tsv").write_text("user_id\traw_user\titem_ids\ttimestamps\n1\tA\t5 6 7\t\n")
    raw = read("data.source=sequences", f"data.path={tmp_path}")
    assert not raw.has_time


# --- real files ----------------------------------------------------------------------------


def test_real_beauty_comes_out_as_published(beauty):
    assert (beauty.n_users, beauty.n_items, len(beauty.item)) == (22_363, 12_101, 198_502)
    report = json.loads((beauty.folder / "statistics.json").read_text())
    assert (report["length"]["min"], report["length"]["max"]) == (5, 204)
    assert report["train"]["prefix samples"] == 131_413
    assert report["train"]["items never seen"] == 33
    assert report["repeats of an earlier item"] == 0
    assert round(report["test"]["cold"], 4) == 0.0062


def test_real_movielens_100k_raw_files(real, artefacts):
    raw = read("data.source=movielens", f"data.path={real('movielens_100k') / 'raw'}")
    assert raw.interactions.height == 100_000
    assert raw.interactions["user"].n_unique() == 943
    assert raw.items.height == 1682
    public = pl.read_csv(real("movielens_100k") / "items.tsv.gz", separator="\t", infer_schema=False, quote_char=None)
    both = raw.items.join(public, left_on="item", right_on="raw_item", suffix="_public")
    assert both.height == 1682
    assert (both["title"] == both["title_public"]).mean() > 0.99


def test_real_amazon_2018_files_with_their_duplicate_reviews(real, tmp_path):
    path = real("amazon_raw_2018") / "All_Beauty_5.json.gz"
    folder = prepared.prepare(cfg.load([f"data.root={tmp_path}", "data.source=amazon", f"data.path={path}"]).data)
    removed = json.loads((folder / "statistics.json").read_text())["removed"]
    assert removed["interactions read"] == 5269
    # an independent count
    with gzip.open(path) as file:
        lines_ = [json.loads(line) for line in file]
    distinct = {(r["reviewerID"], r["asin"]) for r in lines_}
    assert removed["duplicates (first)"] == len(lines_) - len(distinct) > 0


def test_real_gift_cards_have_titles(real, tmp_path):
    data = prepare(tmp_path, "data.source=amazon", f"data.path={real('amazon_giftcards_2018') / 'raw'}")
    assert data.n_items > 100
    assert sum(text != "" for text in data.items["text"]) > 0.95 * data.n_items


@pytest.mark.parametrize("name", ["amazon_toys_2014", "lastfm_hetrec2011", "movielens_100k", "movielens_1m"])
def test_real_sequences_equal_a_plain_reading(real, tmp_path, name):
    data = prepare(tmp_path, "data.source=sequences", f"data.path={real(name)}", "data.negatives=0")
    plain = {}
    with gzip.open(real(name) / "sequences.tsv.gz", "rt", encoding="utf-8") as file:
        next(file)
        for line in file:
            user, _, items, _ = line.rstrip("\n").split("\t")
            plain[user] = items.split(" ")
    raw_items, users = data.items["raw"][:], data.users["raw"][:]
    ours = {users[u]: [raw_items[i] for i in data.item[data.start[u] : data.start[u + 1]]] for u in range(data.n_users)}
    assert ours == plain


# --- wrong input: one line that names file, line and remedy --------------------------------


def refused(*args, match):
    with pytest.raises(ValueError, match=match) as caught:
        read(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_malformed_json_names_the_line(tmp_path):
    refused(
        *amazon(tmp_path, review(), '{"reviewerID": "U", \n', review()), match=r"Toys_5.json, line 2: malformed JSON"
    )
    refused(*amazon(tmp_path, review(), "[1]\n"), match="line 2: not a JSON object")
    refused(*amazon(tmp_path, review(), "\n", review()), match="line 2: a blank line")


def test_a_missing_field_names_the_line(tmp_path):
    refused(*amazon(tmp_path, review(), {"asin": "I", "unixReviewTime": 5}), match="line 2: reviewerID None is missing")


@pytest.mark.parametrize("time", [None, -5, 99_999_999_999])
def test_an_impossible_time_is_refused_or_dropped_and_counted(tmp_path, time):
    where = amazon(tmp_path, review(), review(time=time))
    assert "bad_times=drop" in refused(*where, match="line 2: time")
    raw = read(*where, "data.bad_times=drop")
    assert raw.interactions.height == 1
    assert raw.dropped["bad timestamps"] == 1


def test_wrong_columns_are_named_with_those_found(tmp_path):
    (tmp_path / "log.csv").write_text("user,thing,time\na,b,1\n")
    refused("data.source=table", f"data.path={tmp_path}/log.csv", match=r"no column 'item'; found: user, thing, time")
    (tmp_path / "u.data").write_text("1 2 3 4\n")
    (tmp_path / "u.item").write_text("1|a\n")
    refused("data.source=movielens", f"data.path={tmp_path}", match="separator")
    (tmp_path / "log.xls").write_text("")
    refused("data.source=table", f"data.path={tmp_path}/log.xls", match=r"\.xls is not known")


def test_an_empty_cell_and_a_word_for_a_number_name_the_line(tmp_path):
    (tmp_path / "u.item").write_text("1|a" + "|" * 22 + "\n")
    (tmp_path / "u.data").write_text("1\t1\t3\t5\n1\t\t3\t6\n")
    refused("data.source=movielens", f"data.path={tmp_path}", match="line 2: item None is empty")
    (tmp_path / "u.data").write_text("1\t1\t3\t5\n1\t2\t3\tsoon\n")
    refused("data.source=movielens", f"data.path={tmp_path}", match="line 2: time 'soon'")
    (tmp_path / "log.csv").write_text("user,item,time\na,b,1\na,c,tomorrow\n")
    refused("data.source=table", f"data.path={tmp_path}/log.csv", match="line 3: time 'tomorrow'")


def test_bytes_of_another_encoding_name_the_line(tmp_path):
    (tmp_path / "Toys_5.json").write_bytes(json.dumps(review()).encode() + b'\n{"reviewerID": "\xe9"}\n')
    refused("data.source=amazon", f"data.path={tmp_path}", match="line 2: byte .* is not utf-8")


def test_a_cut_off_gzip_stream_is_refused(tmp_path, monkeypatch):
    whole = gzip.compress("".join(json.dumps(review(item=f"I{i}", time=i)) + "\n" for i in range(5000)).encode())
    (tmp_path / "Toys_5.json.gz").write_bytes(whole[: len(whole) // 2])
    refused("data.source=amazon", f"data.path={tmp_path}", match="gzip stream is cut off or damaged")
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    (tmp_path / "Toys_5.json.gz").write_bytes(bytes(damaged))
    refused("data.source=amazon", f"data.path={tmp_path}", match="Toys_5.json.gz")


def test_a_50_mb_line_is_refused_before_it_is_parsed(tmp_path):
    (tmp_path / "Toys_5.json").write_bytes(
        json.dumps(review()).encode() + b"\n" + b'{"reviewerID": "' + b"x" * (50 << 20) + b'"}\n'
    )
    refused("data.source=amazon", f"data.path={tmp_path}", match="line 2: longer than 16 MiB")


def test_blocks_meet_at_line_ends(tmp_path, monkeypatch):
    text = "".join(json.dumps(review(item=f"I{i}", time=i)) + "\n" for i in range(1000))
    path = tmp_path / "Toys_5.json"
    path.write_text(text)
    monkeypatch.setattr(lines, "BLOCK", 1000)
    parts = list(lines.blocks(path))
    assert b"".join(block for _, block in parts) == text.encode()
    assert len(parts) > 10
    for first, block in parts:
        assert json.loads(block.split(b"\n")[0])["unixReviewTime"] == first - 1
    assert read("data.source=amazon", f"data.path={tmp_path}").interactions.height == 1000


def test_nothing_left_after_the_core_and_nobody_to_evaluate(tmp_path):
    where = amazon(tmp_path, review(), review(item="J", time=2000))
    with pytest.raises(ValueError, match=r"no 5-core in 2 interactions; lower data.k_core"):
        prepare(tmp_path, *where)
    with pytest.raises(ValueError, match="has a validation target"):
        prepare(tmp_path, *where, "data.k_core=0")


def test_an_item_without_text_is_counted(tmp_path):
    where = amazon(
        tmp_path, *[review(item=f"I{i}", time=i) for i in range(4)], meta=["{'asin': 'I1', 'title': 'Kite'}"]
    )
    data = prepare(tmp_path, *where, "data.k_core=0", "data.negatives=0")
    assert json.loads((data.folder / "statistics.json").read_text())["removed"]["items without text"] == 3
    assert sorted(data.items["text"]) == ["", "", "", "Kite"]


@pytest.mark.parametrize("template", ["{nothing}", "{title.__class__}", "{title!r}", "{0}", "{title", "{title:>9}"])
def test_a_text_template_fills_named_fields_only(tmp_path, template):
    with pytest.raises(ValueError, match=r"data\.text="):
        prepare(tmp_path, "data.synthetic.users=50", "data.synthetic.items=30", f"data.text={template}")


def test_a_text_template_joins_attributes(tmp_path):
    data = prepare(
        tmp_path,
        "data.synthetic.users=50",
        "data.synthetic.items=30",
        "data.text={brand}: {category} {{x}}",
        "data.negatives=5",
    )
    first = data.items[0]
    assert first["text"] == f"{first['brand']}: {first['category']} {{x}}"


def test_a_missing_file_says_where_to_get_it_and_where_to_put_it(tmp_path):
    message = refused("data.source=movielens", f"data.path={tmp_path}", match="lacks u.data or ratings.dat")
    assert "grouplens.org" in message
    assert str(tmp_path) in message
    refused("data.source=amazon", f"data.path={tmp_path}", match=r"meta_NAME.json.gz.*get it from")
    refused("data.source=table", f"data.path={tmp_path}/none.csv", match="no such file")
    refused(
        "data.source=movielens",
        "data.catalogue=ml-3m",
        f"data.root={tmp_path}",
        match="unknown data.catalogue='ml-3m'; known: ml-100k",
    )


# --- downloads -----------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    """A loopback server that understands Range and can be told to hang up early."""
    import http.server
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        body, cut = b"", 0

        def do_GET(self):
            begin = int(self.headers.get("Range", "bytes=0-")[6:].rstrip("-"))
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(self.body) - begin))
            self.end_headers()
            end, Handler.cut = Handler.cut or len(self.body), 0
            self.wfile.write(self.body[begin:end])

        def log_message(self, *_):
            pass

    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield Handler, f"http://127.0.0.1:{serving.server_port}/ml-100k.zip"
    serving.shutdown()


def zipped():
    import io
    import zipfile

    bundle = io.BytesIO()
    with zipfile.ZipFile(bundle, "w") as archive:
        archive.writestr("ml-100k/u.data", "".join(f"{u}\t{i}\t5\t{100 + i}\n" for u in range(6) for i in range(6)))
        archive.writestr("ml-100k/u.item", "".join(f"{i}|Film {i} (1990)" + "|" * 22 + "\n" for i in range(6)))
        archive.writestr("../evil", "no")
    return bundle.getvalue()


def test_a_download_is_resumed_checked_and_unpacked_by_name(tmp_path, server, monkeypatch):
    import hashlib

    handler, url = server
    handler.body = zipped()
    handler.cut = 200
    pinned = hashlib.sha256(handler.body).hexdigest()
    monkeypatch.setitem(
        download.CATALOGUES, "ml-100k", (download.Official(url, pinned, ("ml-100k/u.data", "ml-100k/u.item")),)
    )
    args = ("data.source=movielens", "data.catalogue=ml-100k", f"data.root={tmp_path}/a")
    refused(*args, match="run again to go on")
    part = tmp_path / "a/raw/ml-100k/ml-100k.zip.part"
    assert part.stat().st_size == 200
    assert read(*args).interactions.height == 36
    assert not list(tmp_path.rglob("evil"))
    handler.body = handler.body[:-1] + b"x"
    refused("data.source=movielens", "data.catalogue=ml-100k", f"data.root={tmp_path}/b", match="pinned is")


def test_offline_the_error_names_the_file_and_its_address(tmp_path, monkeypatch):
    monkeypatch.setitem(
        download.CATALOGUES,
        "ml-100k",
        (download.Official("http://127.0.0.1:9/ml-100k.zip", None, ("ml-100k/u.data",)),),
    )
    message = refused(
        "data.source=movielens", "data.catalogue=ml-100k", f"data.root={tmp_path}", match="cannot be reached"
    )
    assert "http://127.0.0.1:9/ml-100k.zip" in message
    assert str(tmp_path / "raw/ml-100k/ml-100k.zip") in message


def test_case_08_attributes_of_sequences_may_have_any_name(tmp_path):
    (tmp_path / "sequences.tsv").write_text(
        "user_id\titem_ids\ttimestamps\nu\t1 2 3\t1600000001 1600000002 1600000003\n"
    )
    (tmp_path / "items.tsv").write_text(
        'item_id\ttitle\tline\titem\n1\t17" lamp\tpro\tx\n2\t"cup"\tlite\ty\n3\tmug\t\tz\n'
    )
    items = read("data.source=sequences", f"data.path={tmp_path}").items
    assert items["title"].to_list() == ['17" lamp', '"cup"', "mug"]  # quotes are characters like others
    assert items["line"].to_list() == ["pro", "lite", ""]
    assert items["item_"].to_list() == ["x", "y", "z"]


# --- rows and records that are not as the others -------------------------------------------------

FLAGS = "|".join(["0"] * 18 + ["1"])
FILMS = [f"{k}|Film {k} (1995)|01-Jan-1995||http|{FLAGS}" for k in range(1, 4)]
DRAMAS = [f"{k}::Film {k} (1995)::Drama|War" for k in range(1, 4)]
RATED = [f"1\t{k}\t4\t{1_600_000_000 + k}" for k in range(1, 4)]


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize(
    ("name", "lines_", "change", "what"),
    [
        ("u.item", FILMS, ("Film", "Fi|lm"), "25 cells, but most lines have 24"),
        ("u.item", FILMS, (f"|01-Jan-1995||http|{FLAGS}", ""), "2 cells, but most lines have 24"),
        ("movies.dat", DRAMAS, ("Film", "Fi::lm"), "4 cells, but most lines have 3"),
        ("movies.dat", DRAMAS, ("::Drama|War", ""), "2 cells, but most lines have 3"),
        ("u.data", RATED, ("\t4\t", "\t4\t5\t"), "5 cells, but most lines have 4"),
        ("u.data", RATED, ("\t4\t", "\t"), "3 cells, but most lines have 4"),
    ],
)
def test_a_row_whose_cells_are_shifted_is_refused_wherever_it_stands(tmp_path, name, lines_, change, what, row):
    is_1m = name == "movies.dat"
    ratings = [line.replace("\t", "::") for line in RATED] if is_1m else RATED
    files = {"ratings.dat": ratings, "movies.dat": DRAMAS} if is_1m else {"u.data": RATED, "u.item": FILMS}
    files[name] = [line.replace(*change) if n == row else line for n, line in enumerate(lines_)]
    for place, content in files.items():
        (tmp_path / place).write_text("\n".join(content) + "\n")
    told = refused("data.source=movielens", f"data.path={tmp_path}", match=f"{name}, line {row + 1}: {what}")
    assert repr(files[name][row])[:40] in told


def test_movielens_files_with_columns_more_and_blank_lines_are_read(tmp_path):
    (tmp_path / "u.data").write_text("\n\n".join(f"{line}\tx" for line in RATED))
    (tmp_path / "u.item").write_text("\r\n".join(f"{line}|0" for line in FILMS) + "\r\n")
    raw = read("data.source=movielens", f"data.path={tmp_path}")
    assert raw.interactions["item"].to_list() == ["1", "2", "3"]
    assert raw.items.rows() == [(str(k), f"Film {k}", "1995", "Western") for k in range(1, 4)]


@pytest.mark.parametrize(
    ("lines_", "what"),
    [
        (["1\ta\t1 2\t1600000000 1600000001", "1.0\tb\t3 4\t1600000000 1600000001"], "user_id '1' stands on several"),
        (["u\ta\t1 2\t1600000000 1600000001", "u \tb\t3 4\t1600000000 1600000001"], "user_id 'u' stands on several"),
        (["1\ta\t1 2 3\t4 5 6\t1600000000 1600000001 1600000002"], "line 2: 5 cells, but the header has 4"),
        (["1\ta\t1 2\t1600000000 1600000001", "2\tb\t3 4"], "line 3: 3 cells, but the header has 4"),
    ],
)
def test_sequences_with_a_tab_more_or_a_user_in_two_spellings_are_refused(tmp_path, lines_, what):
    path = tmp_path / "sequences.tsv"
    path.write_text("\n".join(["user_id\traw_user\titem_ids\ttimestamps", *lines_, ""]))
    refused("data.source=sequences", f"data.path={path}", match=what)


def test_a_header_that_names_a_column_twice_is_refused_by_its_file(tmp_path):
    path = tmp_path / "sequences.tsv"
    path.write_text("user_id\titem_ids\titem_ids\ttimestamps\nu\t1 2\t3 4\t1600000000 1600000001\n")
    refused(
        "data.source=sequences", f"data.path={path}", match="sequences.tsv, line 1: the header has 'item_ids' twice"
    )


@pytest.mark.parametrize(
    ("field", "value", "right"),
    [
        ("title", ["Ink", "Pen"], "Ink|Pen"),
        ("title", None, ""),
        ("brand", ["A", "", None, "B"], "A|B"),
        ("category", [None, "Toys", ["Kites"]], "Toys|Kites"),
        ("category", [], ""),
        ("categories", [["A", "B"], ["C"]], "A|B"),
        ("categories", [[None, "B"]], "B"),
        ("categories", [[]], ""),
    ],
)
def test_amazon_records_with_lists_are_texts_without_brackets(tmp_path, field, value, right):
    meta = {"asin": "I", "title": "T", field: value}
    raw = read(*amazon(tmp_path, review(), review(time=2000), meta=[json.dumps(meta)]))
    assert raw.items["category" if field == "categories" else field].to_list() == [right]


def test_an_amazon_category_that_is_no_list_is_shown(tmp_path):
    where = amazon(tmp_path, review(), meta=[json.dumps({"asin": "I", "category": "Toys"})])
    refused(*where, match="meta_Toys.json, line 1: 'asin' is a text and 'category' a list; got 'Toys'")
