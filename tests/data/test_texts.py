"""Texts of items as a reader should see them (cases 19 20)."""

import gzip
import json

import polars as pl
import pytest

from distrec import config as cfg
from distrec.data import prepared
from distrec.data.raw import sources
from distrec.data.raw.values import texts


@pytest.mark.parametrize(
    ("text", "right"),
    [
        *(
            ("Tins &amp; Boxes", "Tins & Boxes"),
            ("Papa Joe&#39;s Card", "Papa Joe's Card"),
            ("Caf&eacute; cup", "Café cup"),
        ),
        *(("5&quot; frame", '5" frame'), ("&#x27;90s", "'90s"), ("1 &lt; 2 &gt; 0", "1 < 2 > 0"), ("a&nbsp;b", "a b")),
        *(("R&amp;amp;B", "R&B"), ("&amp;amp;amp;amp; x", "& x"), ("&amp;quot;x&amp;quot;", '"x"')),
        *(("AT&T; R&B &c.", "AT&T; R&B &c."), ("&copy 2020", "&copy 2020"), ("&notit; &bogus;", "&notit; &bogus;")),
        ('<span id="t" class="a-size">Mug</span>', "Mug"),
        *(("<b>Bold</b> <I>it</I>", "Bold it"), ("A<br/>B<BR>C", "A B C"), ("<p>One</p><p>Two</p>", "One Two")),
        *(
            ("H<sub>2</sub>O", "H2O"),
            ("<a href='x>y'>Link</a>", "Link"),
            ("<!-- a > b -->d", "d"),
            ("x<h2>y</h2>", "x y"),
        ),
        *(("x<script>var a = 1<2;</script>y", "x y"), ("<style>p {}</style>z", "z"), ("y<script>var", "y")),
        *(('Mug <span class="a', "Mug"), ("Mug <img src=x", "Mug"), ("&lt;b&gt;Bold&lt;/b&gt;", "Bold")),
        *(("I <3 you", "I <3 you"), ("a < b", "a < b"), ("a<b and c>d", "a<b and c>d"), ("<Untitled>", "<Untitled>")),
        *(
            ("<bold>", "<bold>"),
            ("Love <3 <b>b</b>", "Love <3 b"),
            ("x <i", "x <i"),
            ("->", "->"),
            ("List<int>", "List<int>"),
        ),
        *(
            ("a\x00b\x07", "ab"),
            ("a\tb\r\nc", "a b c"),
            ("\ufeffa\u200bb", "ab"),
            ("a\x92b", "ab"),
            ("👩\u200d🚀", "👩\u200d🚀"),
        ),
        *(("e\u0301", "é"), ("\u212b", "Å"), ("ﬁ", "ﬁ"), (" two  blanks ", " two  blanks "), ("", ""), (None, None)),
    ],
)
def test_a_text_is_what_a_reader_should_see(text, right):
    items = pl.DataFrame(
        {"item": ["&amp;<b>"], "title": [text], "brand": ["plain"], "n": [3]}, schema_overrides={"title": pl.String}
    )
    clean, counts = texts.clean(items)
    assert clean.rows() == [("&amp;<b>", right, "plain", 3)]
    assert bool(counts) == (text != right)
    again, none = texts.clean(clean)
    assert again.rows() == clean.rows()
    assert not none


def test_every_rule_counts_its_texts(capsys):
    title = ["a &amp; b", "<b>x</b>", "&lt;i&gt;y", "\x00", "e\u0301", "Caf\ufffd", "plain", None]
    items = pl.DataFrame({"item": list("abcdefgh"), "title": title, "brand": ["&amp;"] * 8})
    _, counts = texts.clean(items)
    assert counts == {
        "texts with markup": 1,
        "texts with entities": 10,
        "texts with markup in entities": 1,
        "texts with control characters": 1,
        "texts not in NFC": 1,
        "texts with lost characters (U+FFFD)": 1,
    }
    assert "1 texts of items hold U+FFFD" in capsys.readouterr().err
    assert items["title"].to_list() == title


def test_case_20_amazon_titles_are_clean_before_anything_reads_them(tmp_path):
    titles = ["Tins &amp; Boxes", '<span id="t">Mug</span>', "Caf&eacute; cup", "5&quot; frame", "plain"]
    reviews = [
        {"reviewerID": f"R{u}", "asin": f"B{i}", "unixReviewTime": 1_500_000_000 + i}
        for u in range(5)
        for i in range(5)
    ]
    meta = [
        {"asin": f"B{i}", "title": t, "brand": "A &amp; B", "category": ["Home &amp; Kitchen"]}
        for i, t in enumerate(titles)
    ]
    for name, records in (("Home_5.json", reviews), ("meta_Home.json", meta)):
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    args = ["data.source=amazon", f"data.path={tmp_path}", f"data.root={tmp_path}/art", "data.negatives=0"]
    folder = prepared.prepare(cfg.load(args).data)
    data = prepared.load(folder)
    assert sorted(data.items["text"]) == sorted(["Tins & Boxes", "Mug", "Café cup", '5" frame', "plain"])
    assert set(data.items["brand"]) == {"A & B"}
    assert set(data.items["category"]) == {"Home & Kitchen"}
    removed = json.loads((folder / "statistics.json").read_text())["removed"]
    assert (removed["texts with entities"], removed["texts with markup"]) == (13, 1)


@pytest.mark.parametrize(
    ("coding", "told"), [("utf-8", "read as utf-8"), ("latin-1", "read as latin-1"), ("utf-8-sig", "read as utf-8")]
)
@pytest.mark.parametrize("kind", ["movies.dat", "movies.dat.gz", "u.item"])
def test_case_19_movielens_is_utf8_where_it_is(tmp_path, capsys, coding, told, kind):
    titles = [f"Café Amélie {i} (1999)" for i in range(1, 4)]
    if kind == "u.item":
        (tmp_path / "u.data").write_text("1\t1\t3\t881250949\n1\t2\t3\t881250949\n")
        text = "".join(f"{i}|{title}|01-Jan-1999||url|{'|'.join('0' * 19)}\n" for i, title in enumerate(titles, 1))
    else:
        (tmp_path / "ratings.dat").write_text("1::1::3.5::1000000000\n1::2::3.5::1000000060\n")
        text = "".join(f"{i}::{title}::Drama|Comedy\n" for i, title in enumerate(titles, 1))
    raw = text.encode(coding)
    (tmp_path / kind).write_bytes(gzip.compress(raw) if kind.endswith("gz") else raw)
    items = sources.read(cfg.load(["data.source=movielens", f"data.path={tmp_path}"]).data).items
    assert items["title"].to_list() == ["Café Amélie 1", "Café Amélie 2", "Café Amélie 3"]
    assert items["item"].to_list() == ["1", "2", "3"]
    assert told in capsys.readouterr().err


def test_ascii_needs_no_word_and_one_latin_byte_makes_a_file_latin(tmp_path, capsys):
    path = tmp_path / "movies.dat"
    path.write_bytes(b"1::Plain (1999)::Drama\n")
    assert texts.encoding(path) == "utf-8"
    assert capsys.readouterr().err == ""
    path.write_bytes("1::Café\n".encode() + b"2::Caf\xe9\n")
    assert texts.encoding(path) == "latin-1"


def test_words_for_nothing_in_attributes_are_counted_and_told(capsys):
    items = pl.DataFrame({"item": ["nan", "b", "c"], "title": ["nan", "None", "nan"], "brand": ["NULL", "Nancy", ""]})
    clean, counts = texts.clean(items)
    assert clean.equals(items)
    assert counts == {"texts that are a word for nothing": 4}
    said = capsys.readouterr().err.splitlines()
    assert "items: title is 'nan' in 2 rows, 'None' in 1 rows: words for a missing value, kept as texts" in said[0]
    assert "items: brand is 'NULL' in 1 rows" in said[1]
    assert len(said) == 2
