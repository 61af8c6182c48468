"""Vectors of a user's own, joined by item id: case 29, and every form in which they come."""

import os

import numpy as np
import polars as pl
import pytest
import safetensors.numpy

from distrec import config as cfg
from distrec.data import prepared, store, vectors
from distrec.jobs import prepare

KINDS = [
    "parquet lists",
    "parquet arrays",
    "parquet folder",
    "npz",
    "npy and txt",
    "npy and npy",
    "safetensors and txt",
]


@pytest.fixture
def ids(small):
    """The raw ids in the order of a user's own files: sorted, which the prepared order is not."""
    names = sorted(small.items["raw"])
    assert names != list(small.items["raw"])
    return names


@pytest.fixture
def own(ids):
    """Vectors that say whose they are: the first number is the item's place in the user's files."""
    table = np.random.default_rng(1).standard_normal((len(ids), 5)).astype(np.float32)
    table[:, 0] = np.arange(len(ids)) + 1
    return table


def write(kind, folder, ids, table, stem="v[1]"):
    """The file or folder to give as codes.vectors; brackets in its name are no pattern."""
    if kind.startswith("parquet"):
        column = pl.Series("vector", table)
        if kind != "parquet arrays":
            column = column.arr.to_list()
        frame = pl.DataFrame({"item": ids}, strict=False).with_columns(column)
        if kind != "parquet folder":
            frame.write_parquet(folder / f"{stem}.parquet")
            return folder / f"{stem}.parquet"
        (folder / stem).mkdir()
        (folder / stem / "_SUCCESS").write_text("")
        frame[100:].write_parquet(folder / stem / "part-1.parquet")
        frame[:100].write_parquet(folder / stem / "part-0.parquet")
        return folder / stem
    if kind == "npz":
        np.savez(folder / f"{stem}.npz", ids=np.array(ids), vectors=table)
        return folder / f"{stem}.npz"
    if kind.startswith("npy"):
        np.save(folder / f"{stem}.npy", table)
    else:
        safetensors.numpy.save_file({"vectors": table}, folder / f"{stem}.safetensors")
    if kind.endswith("txt"):
        (folder / f"{stem}.ids.txt").write_text("".join(f"{name}\n" for name in ids))
    else:
        np.save(folder / f"{stem}.ids.npy", np.array(ids))
    return folder / (f"{stem}.npy" if kind.startswith("npy") else f"{stem}.safetensors")


def expected(small, ids, table):
    return table[[ids.index(raw) for raw in small.items["raw"]]]


_FLOATS, _WHOLE = (np.float32, np.float64, np.float16), (np.int8, np.uint8, np.int16, np.int64)
_JOINED = [  # whole numbers in safetensors are refused, below
    (kind, dtype) for kind in KINDS for dtype in (*_FLOATS, *(() if kind.startswith("safetensors") else _WHOLE))
]


@pytest.mark.parametrize(("kind", "dtype"), _JOINED)
def test_vectors_are_joined_by_id_exactly(small, tmp_path, ids, own, kind, dtype):
    if np.dtype(dtype).kind in "iu" or dtype == np.float16:
        own = np.clip(np.rint(own * 3), 0, 100)
        own[:, 0] = np.arange(len(ids)) % 90 + 1
    own = own.astype(dtype) * (np.float64(1) + 2**-40 if dtype == np.float64 else dtype(1))
    table, _ = vectors.load(write(kind, tmp_path, ids, own), small)
    np.testing.assert_array_equal(table, expected(small, ids, own))
    assert table.dtype == (dtype if np.dtype(dtype).kind == "f" else np.float64 if dtype == np.int64 else np.float32)


def test_rows_in_prepared_order_stay_mapped(small, tmp_path, own):
    table, _ = vectors.load(write("npy and txt", tmp_path, list(small.items["raw"]), own), small)
    assert isinstance(table, np.memmap)
    np.testing.assert_array_equal(table, own)


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_a_file_without_ids_is_taken_in_prepared_order_alone(small, tmp_path, own, kind):
    place = write(f"{kind} and txt", tmp_path, [], own, "bare")
    (tmp_path / "bare.ids.txt").unlink()
    with pytest.raises(
        ValueError, match=r"does not say which row is which item.* in bare\.ids\.txt.*vectors_order=prep"
    ):
        vectors.load(place, small)
    table, identity = vectors.load(place, small, order="prepared")
    np.testing.assert_array_equal(table, own)
    assert identity == store.file_digest(place) == vectors.identity(place)


@pytest.mark.parametrize("kind", KINDS)
def test_an_order_beside_ids_is_refused(small, tmp_path, ids, own, kind):
    with pytest.raises(ValueError, match=r"codes\.vectors_order=prepared contradicts the ids"):
        vectors.load(write(kind, tmp_path, ids, own), small, order="prepared")


@pytest.mark.parametrize("kind", KINDS)
def test_other_ids_are_other_vectors(small, tmp_path, ids, own, kind):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    places = write(kind, tmp_path / "a", ids, own), write(kind, tmp_path / "b", ids[::-1], own)
    (one, first), (two, second) = (vectors.load(place, small) for place in places)
    assert first != second
    assert not np.array_equal(one, two)
    assert [vectors.identity(place) for place in places] == [first, second]


@pytest.mark.parametrize("kind", KINDS)
def test_missing_items_are_named_or_get_the_zero_vector(small, tmp_path, ids, own, kind, capfd):
    gone = [name for name in small.items["raw"] if name in (ids[3], ids[-1])]
    keep = [i for i, name in enumerate(ids) if name not in gone]
    place = write(kind, tmp_path, [ids[i] for i in keep], own[keep])
    message = rf"2 of 149 items have no vector in .*, such as '{gone[0]}', '{gone[1]}': .*codes\.vectors_missing=zero"
    with pytest.raises(ValueError, match=message):
        vectors.load(place, small)
    table, _ = vectors.load(place, small, missing="zero")
    own[3] = own[-1] = 0
    np.testing.assert_array_equal(table, expected(small, ids, own))
    assert "2 of 149 vectors are zero, such as those of the items" in capfd.readouterr().err


def test_vectors_of_no_item_are_counted_and_left_out(small, tmp_path, ids, own, capfd):
    more = ["new-1", *ids[:70], "new-2", *ids[70:]]
    table = np.concatenate([own[:1] * 0 + 7, own[:70], own[:1] * 0 + 8, own[70:]])
    loaded, _ = vectors.load(write("parquet lists", tmp_path, more, table), small)
    np.testing.assert_array_equal(loaded, expected(small, ids, own))
    assert "2 of 151 vectors of" in (line := capfd.readouterr().err)
    assert "are of no prepared item, such as 'new-1', 'new-2': not used" in line


def test_ids_that_do_not_match_are_shown_from_both_sides(small, tmp_path, ids, own):
    place = write("npz", tmp_path, [f"x{name}" for name in ids], own)
    message = rf"149 of 149 items have no vector in .*, such as '{small.items[0]['raw']}'.*ids such as 'x{ids[0]}'"
    for missing in ("refuse", "zero"):
        with pytest.raises(ValueError, match=message):
            vectors.load(place, small, missing=missing)


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_that_stands_twice_is_refused(small, tmp_path, ids, own, kind):
    ids[7] = ids[2]
    with pytest.raises(
        ValueError, match=rf"1 ids stand there more than once, such as '{ids[2]}' in rows 3 and 8: keep"
    ):
        vectors.load(write(kind, tmp_path, ids, own), small)


@pytest.mark.parametrize("kind", ["parquet lists", "npz", "npy and txt"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_with_their_item(small, tmp_path, ids, own, kind, value, monkeypatch):
    monkeypatch.setattr(vectors, "_BLOCK", 40)
    own[5, 2] = own[6, 1] = value
    own[3] = 0
    with pytest.raises(
        ValueError, match=r"2 of 149 vectors hold NaN or infinity, such as those of the items '"
    ) as error:
        vectors.load(write(kind, tmp_path, ids, own), small)
    assert {ids[5], ids[6]} == {name for name in ids if repr(name) in str(error.value)}


@pytest.mark.parametrize("as_type", ["int64", "float64", "int32", "text with blanks", "bytes", "categorical"])
def test_ids_of_any_type_are_text(artefacts, tmp_path, as_type):
    """A catalogue of numbers: 7, 7.0 and " 7" are the id "7"."""
    from distrec import config as cfg
    from distrec.data import prepared

    (tmp_path / "log.csv").write_text("user,item,time\n" + "".join(f"{u},{(u * 7 + k) % 12},{k}\n" for u in range(12) for k in range(5)))  # fmt: skip
    words = ["data.source=table", f"data.path={tmp_path}/log.csv", f"data.root={tmp_path}", "data.negatives=0"]
    data = prepared.load(prepared.prepare(cfg.load(words).data))
    own = np.arange(12, dtype=np.float32)[:, None] + np.ones((1, 3), np.float32)
    numbers = np.arange(12)
    names = {
        "text with blanks": np.array([f" {n}" for n in numbers]),
        "bytes": numbers.astype("S"),
        "categorical": numbers,
    }.get(as_type)
    if as_type == "categorical":
        frame = pl.DataFrame({"item": pl.Series(numbers.astype(str), dtype=pl.Categorical), "v": own})
        frame.write_parquet(place := tmp_path / "v.parquet")
    else:
        np.savez(place := tmp_path / "v.npz", ids=numbers.astype(as_type) if names is None else names, vectors=own)
    table, _ = vectors.load(place, data)
    np.testing.assert_array_equal(table[:, 0], [int(raw) + 1 for raw in data.items["raw"]])


def broken(case, folder, ids, own):
    place = folder / "v.npz"
    frame = pl.DataFrame({"item": ids, "vector": own})
    if case == "objects":
        np.savez(place, ids=np.array(ids, dtype=object), vectors=own)
    elif case == "names":
        np.savez(place, embeddings=own, items=np.array(ids))
    elif case == "cut":
        np.savez(place, ids=np.array(ids), vectors=own)
        place.write_bytes(place.read_bytes()[:-200])
    elif case == "flipped":
        np.savez(place, ids=np.array(ids), vectors=own)
        raw = bytearray(place.read_bytes())
        raw[len(raw) // 2] ^= 255
        place.write_bytes(raw)
    elif case == "one array":
        np.save(folder / "v.npy", own)
        os.rename(folder / "v.npy", place)
    elif case == "short ids":
        np.savez(place, ids=np.array(ids)[1:], vectors=own)
    elif case == "flat":
        np.savez(place, ids=np.array(ids), vectors=own[:, 0])
    elif case == "truth":
        np.savez(place, ids=np.array(ids), vectors=own > 0)
    elif case == "large":
        np.savez(place, ids=np.array(ids), vectors=(own * 0).astype(np.int64) + 2**60)
    elif case == "odd ids":
        np.savez(place, ids=own, vectors=own)
    elif case == "half ids":
        np.savez(place, ids=np.arange(len(ids)) + 0.5, vectors=own)
    else:
        place = folder / "v.parquet"
        columns = {
            "no lists": frame.with_columns(vector=pl.lit(1.0)),
            "which ids": frame.rename({"item": "a"}).with_columns(b=pl.lit(1)),
            "which lists": frame.with_columns(other=pl.col("vector")),
            "ragged": frame.with_columns(pl.col("vector").arr.to_list()).with_columns(
                vector=pl.when(pl.col("item") == ids[4]).then(pl.col("vector").list.head(3)).otherwise("vector")
            ),
            "null vector": frame.with_columns(vector=pl.when(pl.col("item") != ids[4]).then("vector")),
            "null list": frame.with_columns(pl.col("vector").arr.to_list()).with_columns(
                vector=pl.when(pl.col("item") != ids[4]).then("vector")
            ),
            "null number": frame.with_columns(
                pl.col("vector").arr.to_list().list.eval(pl.when(pl.element() != own[4, 0]).then(pl.element()))
            ),
            "texts": frame.with_columns(vector=pl.concat_list(pl.lit("a"), pl.lit("b"))),
            "null id": frame.with_columns(item=pl.when(pl.col("item") != ids[4]).then("item")),
            "empty id": frame.with_columns(item=pl.when(pl.col("item") != ids[4]).then("item").otherwise(pl.lit(" "))),
            "bool ids": frame.with_columns(item=pl.lit(True)),
        }.get(case, frame)
        columns.write_parquet(place)
        if case == "torn":
            place.write_bytes(place.read_bytes()[:-100])
    return place


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("objects", r"Python objects, which are never unpickled; save texts with \.astype\(str\)"),
        ("names", "wanted are the arrays ids and vectors, it holds embeddings, items"),
        ("cut", r"not a complete \.npz file"),
        ("flipped", r"not a complete \.npz file|hold NaN or infinity"),
        ("one array", "its bytes are of the other kind"),
        ("short ids", "holds 148 ids and 149 vectors: one id a row"),
        ("flat", r"got float32 of shape \(149,\)"),
        ("truth", "got bool of shape"),
        ("large", r"int64 numbers reach 1e\+18: scale them"),
        ("odd ids", "one text or whole number a row, got float32 of shape"),
        ("half ids", r", row 1: ids 0\.5 is no whole number, and so no id"),
        (
            "no lists",
            r"wanted are a column of lists of numbers and the column item .*, it has item \(String\), vector \(",
        ),
        ("which ids", "wanted are a column of lists"),
        ("which lists", "wanted are a column of lists"),
        ("ragged", r"1 of 149 vectors have not 5 numbers as most, such as that of item .* \(3\)"),
        ("null vector", "has null for its vector"),
        ("null list", r"such as that of item .* \(null\)"),
        ("null number", "1 of 149 vectors hold NaN or infinity"),
        ("texts", "got object of shape"),
        ("null id", ", row 5: item None is no id"),
        ("empty id", ", row 5: item ' ' is no id"),
        ("bool ids", "column 'item' holds Boolean; an id is a text or a whole number"),
        ("torn", "not a complete Parquet file of vectors"),
    ],
)
def test_broken_files_are_one_clear_line(small, tmp_path, ids, own, case, message):
    place = broken(case, tmp_path, ids, own)
    with pytest.raises(ValueError, match=message) as error:
        vectors.load(place, small)
    assert str(place) in str(error.value)
    assert "\n" not in str(error.value)


def test_ids_beside_a_file_are_lines_as_they_stand(small, tmp_path, ids, own, capfd):
    place = write("npy and txt", tmp_path, ids, own, "v")
    beside = tmp_path / "v.ids.txt"
    beside.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(ids).encode())  # a mark, Windows' line ends, none at the end
    np.testing.assert_array_equal(vectors.load(place, small)[0], expected(small, ids, own))
    assert "blanks" not in capfd.readouterr().err
    for text, message in (
        ("\n".join(ids[1:]).encode(), r"v\.ids\.txt holds 148 ids, .*v\.npy has 149 vectors"),
        ("\n".join([ids[0], "", *ids[2:]]).encode(), r"v\.ids\.txt, row 2: ids '' is no id"),
        (b"\xff\xfe" + "\n".join(ids).encode("utf-16-le"), "not a UTF-8 text, .* at byte 0: save it as UTF-8"),
    ):
        beside.write_bytes(text)
        with pytest.raises(ValueError, match=message):
            vectors.load(place, small)
    np.save(tmp_path / "v.ids.npy", np.array(ids))
    with pytest.raises(ValueError, match=r"v\.ids\.txt and .*v\.ids\.npy both hold the ids of .*: remove one"):
        vectors.load(place, small)


def test_an_id_may_hold_any_letter(tmp_path, small):
    """The Unicode line separators are no line ends of a file of ids."""
    names = pl.Series("item", ["a\u2028b", "c\x0bd", "e"])
    (tmp_path / "v.ids.txt").write_text("".join(f"{name}\n" for name in names))
    np.save(tmp_path / "v.npy", np.ones((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"149 of 149 items have no vector .*'a.u2028b', 'c.x0bd', 'e'"):
        vectors.load(tmp_path / "v.npy", small)


@pytest.mark.parametrize("kind", ["txt", "parquet"])
def test_prepare_writes_the_ids_in_the_order_that_is_wanted(tmp_path, ids, small, own, kind, capsys):
    words = [f"data.root={tmp_path}", "data.synthetic.users=120", "data.synthetic.items=150", "data.negatives=20"]
    prepare.main([*words, f"ids={tmp_path}/order.{kind}"])
    if kind == "txt":
        order = (tmp_path / "order.txt").read_text().splitlines()
    else:
        order = pl.read_parquet(tmp_path / "order.parquet")["item"].to_list()
    assert order == list(small.items["raw"])
    assert capsys.readouterr().out.splitlines()[0].startswith(str(tmp_path / "prepared-"))
    np.save(tmp_path / "v.npy", own[[ids.index(name) for name in order]])
    np.testing.assert_array_equal(
        vectors.load(tmp_path / "v.npy", small, order="prepared")[0], expected(small, ids, own)
    )
    for wrong in ("ids=", f"ids={tmp_path}", "ids=a.csv", f"ids={tmp_path}/none/a.txt"):
        with pytest.raises(ValueError, match=r"give a file that ends in \.txt or \.parquet, in a folder that is there"):
            prepare.main([*words, wrong])


@pytest.mark.parametrize("layout", ["part-{}.parquet", "part-{}.pq", "shard={}/part-0.parquet", "{}/x.PQ"])
def test_a_folder_of_parts_that_say_the_same_in_other_types_and_orders(small, tmp_path, ids, own, layout):
    """Twelve parts: part-10 comes after part-2, which is nothing to rows that are joined by id."""
    own, place = own.astype(np.float64) * (1 + 2**-40), tmp_path / "v"
    kinds = [pl.List(pl.Float32), pl.List(pl.Float64), pl.Array(pl.Float32, own.shape[1]), pl.List(pl.Float16)]
    for n in range(12):
        path, rows = place / layout.format(n), slice(n, None, 12)
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = kinds[n % 4]
        number = {0: np.float32, 1: np.float64, 2: np.float32, 3: np.float16}[n % 4]
        own[rows] = own[rows].astype(number)
        frame = pl.DataFrame({"item": ids[rows], "vector": own[rows].tolist()}).with_columns(
            pl.col("item").cast(pl.Categorical if n % 3 == 1 else pl.String), pl.col("vector").cast(kind)
        )
        (frame.select("vector", "item") if n % 2 else frame).write_parquet(path)
    (place / "notes.txt").write_text("x")
    table, identity = vectors.load(place, small)
    np.testing.assert_array_equal(table, expected(small, ids, own))
    assert table.dtype == np.float64
    assert identity == vectors.identity(place)
    if layout.endswith("pq"):
        frame.write_parquet(tmp_path / "one.pq")
        with pytest.raises(ValueError, match=r"one\.pq"):  # read, and found to lack the other items
            vectors.load(tmp_path / "one.pq", small)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (b"torn", r"part-1\.parquet: not a complete Parquet file of vectors"),
        (
            pl.DataFrame({"item": ["x"], "vector": [[1.0]], "note": [1]}),
            r"part-1\.parquet has .*note .*: write all parts",
        ),
        (pl.DataFrame({"item": ["x"], "vector": [[1]]}), r"part-1\.parquet has .*Int64.*part-0\.parquet has .*Float64"),
    ],
)
def test_a_part_that_is_unlike_the_others_is_named(small, tmp_path, second, message):
    place = tmp_path / "v"
    place.mkdir()
    pl.DataFrame({"item": ["x"], "vector": [[1.0]]}).write_parquet(place / "part-0.parquet")
    if isinstance(second, bytes):
        (place / "part-1.parquet").write_bytes(second)
    else:
        second.write_parquet(place / "part-1.parquet")
    with pytest.raises(ValueError, match=message):
        vectors.load(place, small)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([b"x", b"\xff"]), r"v\.ids\.npy: ids b'\\xff' are no UTF-8: save texts"),
        (np.array([0x78, 0x110000], np.uint32).view("U1"), r"v\.ids\.npy, row 2: ids hold what is no character"),
        (np.array([0x78, 0xDFFF], np.uint32).view("U1"), r"v\.ids\.npy, row 2: ids hold what is no character"),
        (np.array([0xD800, 0x78], np.uint32).view("U1"), r"v\.ids\.npy, row 1: ids hold what is no character"),
        (np.array([[0x78, 0], [0x78, 0x120000]], ">u4").view(">U2").ravel(), r"v\.ids\.npy, row 2: ids hold"),
    ],
)
def test_ids_of_characters_that_are_none_are_named(small, tmp_path, ids, message):
    np.save(tmp_path / "v.npy", np.ones((2, 3), np.float32))
    np.save(tmp_path / "v.ids.npy", ids)
    with pytest.raises(ValueError, match=message):
        vectors.load(tmp_path / "v.npy", small)


@pytest.mark.parametrize("order", "<>")
def test_the_characters_beside_those_that_are_none_are_read(tmp_path, order):
    ids = ["\U0010ffff", "\ud7ff", "\ue000", "xy"]
    np.save(tmp_path / "v.npy", np.ones((4, 3), np.float32))
    np.save(tmp_path / "v.ids.npy", np.array(ids).astype(f"{order}U2"))
    names = vectors.vector_files.read(tmp_path / "v.npy")[1]
    assert names is not None
    assert names.to_list() == ids


def test_ids_of_bytes_are_utf_8(small, tmp_path, ids, own):
    np.save(tmp_path / "v.npy", own)
    np.save(tmp_path / "v.ids.npy", np.char.encode(np.array(ids), "utf-8"))
    np.testing.assert_array_equal(vectors.load(tmp_path / "v.npy", small)[0], expected(small, ids, own))


@pytest.mark.parametrize("shape", [b"({  }, 5", b"(a*b, 5)"])
def test_a_damaged_header_is_told_without_python_in_it(small, tmp_path, own, shape):
    np.save(tmp_path / "v.npy", own)
    body = (tmp_path / "v.npy").read_bytes()
    (tmp_path / "v.npy").write_bytes(body.replace(b"(149, 5)", shape, 1))
    with pytest.raises(ValueError, match=r"v\.npy: not a complete \.npy file") as error:
        vectors.load(tmp_path / "v.npy", small)
    assert "object at" not in str(error.value)


def test_a_long_id_is_cut_in_a_message(small, tmp_path, ids, own):
    np.save(tmp_path / "v.npy", own)
    np.save(tmp_path / "v.ids.npy", np.array(["a" * 70_000, *ids[1:]]))
    with pytest.raises(ValueError, match=r"aaa… \(70,002 characters\)") as error:
        vectors.load(tmp_path / "v.npy", small)
    assert len(str(error.value)) < 1000


def test_an_id_of_several_lines_is_no_line_of_a_file(tmp_path):
    long = "a\n" + "b" * 9000
    pl.DataFrame({"user": ["u"] * 4, "item": [long, "x", "y", "z"], "time": [1, 2, 3, 4]}).write_parquet(
        tmp_path / "log.parquet"
    )
    words = ["data.source=table", f"data.path={tmp_path}/log.parquet", f"data.root={tmp_path}", "data.negatives=0"]
    data = prepared.load(prepared.prepare(cfg.load(words).data))
    with pytest.raises(ValueError, match=r"ids\.txt: the item id 'a\\nb+… \(9,005 characters\) has a line break"):
        vectors.write_ids(tmp_path / "ids.txt", data)
