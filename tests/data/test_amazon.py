"""Amazon Reviews 2023: reviews, ratings alone, metadata with nested fields (case 07 as a source)."""

import gzip
import json

import pytest

from distrec import config as cfg
from distrec.data import prepared
from distrec.data.raw import download, sources

NOW = 1_588_687_728_923  # milliseconds: 2020-05-05T14:08:48.923


def review(user="AE22", item="B01", time=NOW, **more):
    rest = {
        "rating": 5.0,
        "title": "Fine",
        "text": "x",
        "images": [{"hi_res": None}],
        "asin": f"{item}-red",
        "verified_purchase": True,
    }
    return {**rest, "parent_asin": item, "user_id": user, "timestamp": time, **more}


META = [
    {
        "main_category": "Software",
        "title": "Caf&eacute; &amp; Co",
        "store": "Ink",
        "categories": ["Software", "Games"],
        "parent_asin": "B01",
    }
    | {
        "images": {"hi_res": [None], "thumb": ["u"]},
        "videos": {"title": []},
        "details": {"Brand": "X", "Is <b>": None},
        "price": None,
    },
    {"main_category": "Software", "title": None, "store": None, "categories": [], "parent_asin": "B02", "details": {}},
    {"title": "Nobody's", "parent_asin": "B99"},
]


def folder(path, reviews, meta=META, name="Software.jsonl", pack=False):
    for file, records in ((name, reviews), (f"meta_{name.partition('.')[0]}.jsonl", meta)):
        text = records if isinstance(records, str) else "".join(json.dumps(record) + "\n" for record in records)
        target = path / (file + ".gz" * pack)
        target.write_bytes(gzip.compress(text.encode()) if pack else text.encode())
    return "data.source=amazon", f"data.path={path}"


def read(*args):
    return sources.read(cfg.load(args).data)


def refused(*args, match):
    with pytest.raises(ValueError, match=match) as caught:
        read(*args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pack", [False, True])
def test_reviews_and_metadata_of_2023(tmp_path, pack):
    raw = read(*folder(tmp_path, [review(), review("AE33", "B02", NOW + 1)], pack=pack))
    assert raw.interactions.rows() == [("AE22", "B01", NOW * 1000), ("AE33", "B02", NOW * 1000 + 1000)]
    assert raw.items.rows(named=True) == [
        {"item": "B01", "title": "Café & Co", "brand": "Ink", "category": "Software|Games"},
        {"item": "B02", "title": "", "brand": "", "category": "Software"},
    ]


def test_ratings_alone_are_a_csv(tmp_path):
    rows = f"user_id,parent_asin,rating,timestamp\nAE22,B01,5.0,{NOW}\nAE33,B02,1.0,{NOW + 1}\n"
    raw = read(*folder(tmp_path, rows, name="Software.csv"))
    assert raw.interactions.rows() == [("AE22", "B01", NOW * 1000), ("AE33", "B02", NOW * 1000 + 1000)]
    assert raw.items["item"].to_list() == ["B01", "B02"]
    history = "user_id,parent_asin,rating,timestamp,history\n" + f"AE22,B01,5.0,{NOW},B07 B08\n"
    assert read(*folder(tmp_path, history, name="Software.csv")).interactions.height == 1
    refused(
        *folder(tmp_path, f"AE22,B01,5.0,{NOW}\n", name="Software.csv"),
        match="Software.csv, line 1: no field 'reviewerID' .*2023",
    )


def test_what_is_missing_is_called_by_its_name_of_2023(tmp_path):
    refused(*folder(tmp_path, [review(), review(user=None)]), match="Software.jsonl, line 2: user_id None is missing")
    refused(*folder(tmp_path, [review(), review(item=None)]), match="line 2: parent_asin None is missing")
    refused(
        *folder(tmp_path, [{"user": "a", "item": "b"}]),
        match="line 1: no field 'reviewerID' .* no 'user_id' .*; found: user, item; ",
    )
    refused(
        *folder(tmp_path, [review()], [{"asin": "B01", "title": "x"}]),
        match="meta_Software.jsonl, line 1: no 'parent_asin'",
    )


@pytest.mark.parametrize(
    ("time", "why"), [(-62_135_596_800_000, "negative"), (0, "1970"), (None, "missing"), (NOW * 1000, "future")]
)
def test_times_of_2023_that_cannot_be_are_refused_or_dropped_and_counted(tmp_path, time, why):
    args = folder(tmp_path, [review(), review("AE33"), review("AE44", time=time)])
    refused(*args, match=f"Software.jsonl, line 3: time .?{time}.? .*{why}.*data.bad_times=drop")
    raw = read(*args, "data.bad_times=drop")
    assert raw.interactions["user"].to_list() == ["AE22", "AE33"]
    assert raw.dropped["bad timestamps"] == 1


def test_seconds_in_a_file_of_2023_are_refused_with_the_unit(tmp_path):
    refused(
        *folder(tmp_path, [review(time=NOW // 1000)] * 2),
        match=f"line 1: time '{NOW // 1000}' is 1970.*if it stands for s.*data.source=table",
    )


def test_prepared_data_of_2023(tmp_path):
    reviews = [review(f"U{u}", f"B0{i + 1}", NOW - 60_000 * i) for u in range(6) for i in range(5)]
    meta = [{"title": f"T{i}", "parent_asin": f"B0{i + 1}", "store": "S"} for i in range(5)]
    data = prepared.load(
        prepared.prepare(cfg.load([*folder(tmp_path, reviews, meta), f"data.root={tmp_path}", "data.negatives=0"]).data)
    )
    names = data.items["raw"][:]
    assert [names[item] for item in data.item[:5]] == ["B05", "B04", "B03", "B02", "B01"]
    assert sorted(data.items["text"]) == [f"T{i}" for i in range(5)]


@pytest.mark.parametrize("keeps", [False, True])
def test_case_25_items_that_nobody_reviewed_are_counted_or_kept(tmp_path, keeps):
    reviews = [review(f"U{u}", f"B0{i + 1}", NOW - 60_000 * i) for u in range(6) for i in range(5)]
    meta = [{"title": f"T{i}", "parent_asin": f"B0{i + 1}", "store": "S"} for i in range(8)]
    words = ["data.cold_items=keep"] * keeps
    data = prepared.load(
        prepared.prepare(
            cfg.load([*folder(tmp_path, reviews, meta), f"data.root={tmp_path}", "data.negatives=0", *words]).data
        )
    )
    assert sorted(data.items["text"]) == [f"T{i}" for i in range(8 if keeps else 5)]
    report = json.loads((data.folder / "statistics.json").read_text())
    assert report["removed"]["item rows that join with nothing"] == (0 if keeps else 3)


def test_the_catalogues_of_2023_lie_where_they_are_published():
    reviews, meta = download.official("amazon-2023/All_Beauty")
    root = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw"
    assert reviews.url == f"{root}/review_categories/All_Beauty.jsonl.gz"
    assert meta.url == f"{root}/meta_categories/meta_All_Beauty.jsonl.gz"
    with pytest.raises(ValueError, match="amazon-2023/NAME"):
        download.official("amazon-2023")


@pytest.mark.parametrize("pack", [False, True])
def test_ratings_whose_cells_stand_in_quotes_are_read_without_them(tmp_path, pack):
    text = f'"user_id","parent_asin","rating","timestamp"\n"U1","B01","5.0","{NOW}"\n"U2","B01","4.0","{NOW + 1}"\n'
    path = tmp_path / f"Software.csv{'.gz' * pack}"
    path.write_bytes(gzip.compress(text.encode()) if pack else text.encode())
    raw = read("data.source=amazon", f"data.path={path}")
    assert raw.interactions.rows() == [("U1", "B01", NOW * 1000), ("U2", "B01", (NOW + 1) * 1000)]
    path.with_name("odd.csv").write_text(text + f'"U"3,B01,1.0,{NOW}\n')
    refused("data.source=amazon", f"data.path={tmp_path}/odd.csv", match=r"odd\.csv, line 4: a quote closes a cell")
    path.with_name("odd.csv").write_text(f"user_id,parent_asin,rating,timestamp\nU1,B01,5.0,{NOW}\n,B02,5.0,{NOW}\n")
    refused("data.source=amazon", f"data.path={tmp_path}/odd.csv", match=r"odd\.csv, line 3: user None is missing")
