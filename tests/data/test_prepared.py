"""Prepared data hold what the log says, and nothing they should not."""

import itertools
import json

import numpy as np
import polars as pl
import pytest
from conftest import prepare_small

from distrec import config as cfg
from distrec.data import prepared, store


def write_log(path, rng, n=600):
    frame = pl.DataFrame(
        {"user": rng.integers(0, 40, n), "item": rng.integers(0, 30, n), "time": rng.integers(0, 10**9, n)}
    )
    frame.write_parquet(path)
    return frame


def table(tmp_path, *more, name="log.parquet"):
    return cfg.load(
        [
            f"data.root={tmp_path}/artefacts",
            "data.source=table",
            f"data.path={tmp_path}/{name}",
            "data.negatives=0",
            *more,
        ]
    ).data


def sequences(data):
    users, items = data.users["raw"][:], data.items["raw"][:]
    return {users[u]: [items[i] for i in data.item[data.start[u] : data.start[u + 1]]] for u in range(data.n_users)}


def test_sequences_are_those_of_the_log(tmp_path):
    log = write_log(tmp_path / "log.parquet", np.random.default_rng(0))
    data = prepared.load(prepared.prepare(table(tmp_path, "data.duplicates=keep")))
    plain = {}
    for user, item, _ in sorted(log.rows(), key=lambda row: row[2]):
        plain.setdefault(str(user), []).append(str(item))
    assert sequences(data) == plain


def test_arrays_are_memory_mapped_not_loaded(small):
    assert not small.item.flags.writeable
    assert not small.item.flags.owndata


def test_the_same_config_and_files_give_the_same_bytes(tmp_path):
    folders = [prepare_small(tmp_path / name).folder for name in ("a", "b")]
    stamps = [store.verify(folder)["files"] for folder in folders]
    assert stamps[0] == stamps[1]


def test_a_changed_input_is_never_used_silently(tmp_path):
    write_log(tmp_path / "log.parquet", np.random.default_rng(0))
    first = prepared.prepare(table(tmp_path))
    assert prepared.prepare(table(tmp_path)) == first
    write_log(tmp_path / "log.parquet", np.random.default_rng(1))
    assert prepared.prepare(table(tmp_path)) != first


def test_a_touched_artefact_is_refused_by_name(tmp_path):
    write_log(tmp_path / "log.parquet", np.random.default_rng(0))
    folder = prepared.prepare(table(tmp_path))
    path = folder / "interactions.arrow"
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(bytes(whole))
    with pytest.raises(ValueError, match=r"prepared-.* is corrupt: interactions\.arrow"):
        prepared.prepare(table(tmp_path))


def test_ids_say_nothing_about_the_order_of_the_rows(tmp_path):
    log = write_log(tmp_path / "log.parquet", np.random.default_rng(0))
    log.sample(fraction=1, shuffle=True, seed=1).write_parquet(tmp_path / "shuffled.parquet")
    one, two = (
        prepared.load(prepared.prepare(table(tmp_path, name=name))) for name in ("log.parquet", "shuffled.parquet")
    )
    assert one.items["raw"][:] == two.items["raw"][:]
    assert one.users["raw"][:] == two.users["raw"][:]
    other = prepared.load(prepared.prepare(table(tmp_path, "data.seed=1")))
    assert sorted(other.items["raw"]) == sorted(one.items["raw"])
    assert other.items["raw"][:] != one.items["raw"][:]


def test_without_equal_times_the_order_of_the_rows_changes_nothing(tmp_path):
    log = write_log(tmp_path / "log.parquet", np.random.default_rng(0)).unique("time")
    log.write_parquet(tmp_path / "log.parquet")
    log.sample(fraction=1, shuffle=True, seed=1).write_parquet(tmp_path / "shuffled.parquet")
    one, two = (
        prepared.load(prepared.prepare(table(tmp_path, name=name))) for name in ("log.parquet", "shuffled.parquet")
    )
    assert (one.item == two.item).all()


def test_targets_of_the_splits_are_disjoint_and_last(small):
    valid_users, valid = small.targets("valid")
    test_users, test = small.targets("test")
    assert not set(valid) & set(test)
    train = small.is_train()
    assert not train[valid].any()
    assert not train[test].any()
    assert (test + 1 == small.start[test_users + 1]).all()
    assert (valid + 2 == small.start[valid_users + 1]).all()
    assert train.sum() + len(valid) + len(test) == len(small.item)


def test_the_report_counts_what_was_removed(tmp_path):
    rows = [("a", "x", 1), ("a", "x", 1), ("a", "y", 2), ("a", "z", 3), ("a", "x", 4), ("b", "q", 1), ("b", "x", -1)]
    pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").write_parquet(tmp_path / "log.parquet")
    folder = prepared.prepare(table(tmp_path, "data.bad_times=drop", "data.duplicates=same_time"))
    report = json.loads((folder / "statistics.json").read_text())
    assert report["removed"] == {
        "interactions read": 7,
        "bad timestamps": 1,
        "moved into time order": 0,
        "duplicates (same_time)": 1,
        "outside the 0-core": 0,
        "item rows that join with nothing": 0,
        "item rows removed with their interactions": 0,
        "repeated item rows": 0,
        "items without text": 4,
    }
    assert report["interactions"] == 5
    assert report["repeats of an earlier item"] == 1
    assert report["repeats, of all interactions"] == 1 / 5


def test_global_time_needs_times(tmp_path):
    (tmp_path / "sequences.tsv").write_text("user_id\traw_user\titem_ids\ttimestamps\n1\tA\t5 6 7\t\n")
    (tmp_path / "items.tsv").write_text("item_id\ttitle\n5\tFive\n")
    config = cfg.load(
        [f"data.root={tmp_path}", "data.source=sequences", f"data.path={tmp_path}", "data.split=global_time"]
    ).data
    with pytest.raises(ValueError, match="needs timestamps"):
        prepared.prepare(config)


def test_a_catalogue_too_small_for_negatives_has_none_and_says_so(tmp_path, capsys):
    data = prepare_small(tmp_path, "data.synthetic.items=20", "data.negatives=99")
    assert data.negatives is None
    assert "no sampled protocol" in capsys.readouterr().err


def write_csv(path, head, rows):
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n")


def test_case_16_negatives_count_distinct_items_not_plays(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = [(f"u{u}", f"i{rng.integers(60)}", 100 * k) for u in range(30) for k in range(9)]
    rows += [("bot", f"i{k % 6}", 10 + k) for k in range(500)] + [("all", f"i{k}", k) for k in range(55)]
    write_csv(tmp_path / "log.csv", "user,item,time", rows)
    folder = prepared.prepare(table(tmp_path, "data.negatives=20", name="log.csv"))
    data = prepared.load(folder)
    names, items = data.users["raw"][:], np.array(data.items["raw"][:])
    for u, name in enumerate(names):
        had = set(items[data.item[data.start[u] : data.start[u + 1]]])
        assert (data.negatives[u] == -1).all() if name == "all" else not had & set(items[data.negatives[u]])
    assert "1 of 32 users, the first of them 'all', had so many of the" in capsys.readouterr().err
    assert json.loads((folder / "statistics.json").read_text())["users without sampled negatives"] == 1


def test_repeated_targets_are_those_that_their_user_had_before(tmp_path):
    rng = np.random.default_rng(3)
    rows = [(f"u{u}", f"i{rng.integers(8)}", t) for u in range(40) for t in range(rng.integers(1, 9))]
    write_csv(tmp_path / "log.csv", "user,item,time", rows)
    report = json.loads((prepared.prepare(table(tmp_path, name="log.csv")) / "statistics.json").read_text())
    items = {}
    for user, item, _ in rows:
        items.setdefault(user, []).append(item)
    long = [each for each in items.values() if len(each) >= 3]
    assert report["targets that are repeats"] == {
        "valid": sum(each[-2] in each[:-2] for each in long) / len(long),
        "test": sum(each[-1] in each[:-1] for each in long) / len(long),
    }
    again = sum(item in each[:n] for each in items.values() for n, item in enumerate(each))
    assert report["repeats, of all interactions"] == again / len(rows) > 0


SPLIT = [
    ("a", "x", 1, "train"), ("a", "y", 2, "train"), ("a", "z", 3, "valid"), ("a", "w", 4, "test"), ("a", "v", 5, "test"),
    ("b", "y", 3, "train"), ("b", "z", 5, "train"), ("b", "x", 5, "valid"), ("c", "w", 9, "test"), ("d", "x", 2, "train"),
]  # fmt: skip


def three(data):
    """By user, the items of each part as the prepared data split them."""
    items, ends = data.items["raw"][:], zip(data.start, data.train_end, data.valid_end, data.start[1:], strict=False)
    cut = {user: (low, a, b, high) for user, (low, a, b, high) in zip(data.users["raw"][:], ends, strict=True)}
    return {
        user: [[items[i] for i in data.item[low:high]] for low, high in itertools.pairwise(at)]
        for user, at in cut.items()
    }


@pytest.mark.parametrize("word", ["valid", "Validation", "val", "dev"])
@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_case_28_a_split_that_comes_with_the_data_is_used_as_it_is(tmp_path, word, is_folder, seed):
    rows = [SPLIT[i] for i in np.random.default_rng(seed).permutation(len(SPLIT))]
    words, name = [], "log.csv"
    if is_folder:
        (folder := tmp_path / "parts").mkdir()
        for part in ("train", "valid", "test"):
            write_csv(folder / f"{word.lower() if part == 'valid' else part}.csv", "user,item,time", [r[:3] for r in rows if r[3] == part])  # fmt: skip
        name = "parts"
    else:
        words = ["data.columns.split=fold"]
        named = [(*row[:3], word if row[3] == "valid" else row[3]) for row in rows]
        write_csv(tmp_path / "log.csv", "user,item,time,fold", named)
    folder = prepared.prepare(table(tmp_path, "data.split=given", *words, name=name))
    data = prepared.load(folder)
    assert three(data) == {
        "a": [["x", "y"], ["z"], ["w", "v"]],
        "b": [["y", "z"], ["x"], []],
        "c": [[], [], ["w"]],
        "d": [["x"], [], []],
    }
    users, places = data.targets("test")
    assert {(data.users["raw"][int(u)], data.items["raw"][int(data.item[p])]) for u, p in zip(users, places, strict=True)} == {("a", "w"), ("c", "w")}  # fmt: skip
    assert json.loads((folder / "statistics.json").read_text())["held out but no target"] == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*SPLIT, ("b", "q", 6, "train")], r"user 'b' has a valid interaction before a train one \(1 of 4 users"),
        ([*SPLIT, ("a", "q", 2, "test")], r"user 'a' has a test interaction before a valid one"),
        ([*SPLIT, ("b", "q", 6, "tset")], r"log\.csv, line 12: split 'tset' is none of train, valid and test"),
        ([*SPLIT, ("b", "q", 6, "")], r"log\.csv, line 12: split (None|'') is none of"),
        ([row for row in SPLIT if row[3] != "valid"], r"no interaction is 'valid'"),
    ],
)
def test_a_split_that_cannot_be_is_refused_in_words(tmp_path, rows, message):
    write_csv(tmp_path / "log.csv", "user,item,time,split", rows)
    with pytest.raises(ValueError, match=message):
        prepared.prepare(table(tmp_path, "data.split=given", name="log.csv"))


def test_a_given_split_is_audited_by_equal_times_too(tmp_path):
    """A held-out interaction of the same time never stands before one for training; a repeat of it is dropped."""
    rows = [("a", "x", 1, "test"), ("a", "y", 1, "valid"), ("a", "z", 1, "train"), ("a", "z", 1, "test"), ("a", "w", 1, "train")]  # fmt: skip
    write_csv(tmp_path / "log.csv", "user,item,time,split", rows)
    for ties in ("file_order", "shuffle"):
        data = prepared.load(prepared.prepare(table(tmp_path, "data.split=given", f"data.ties={ties}", name="log.csv")))
        parts = three(data)["a"]
        assert [sorted(part) for part in parts] == [["w", "z"], ["y"], ["x"]]


def removed(folder):
    return json.loads((folder / "statistics.json").read_text())["removed"]


KEY = "held-out rows dropped, as an earlier part has them"


@pytest.mark.parametrize("rule", [None, "same_time", "first", "keep"])
@pytest.mark.parametrize("ties", ["file_order", "shuffle"])
def test_a_held_out_row_that_an_earlier_part_has_is_told_and_counted(tmp_path, capsys, rule, ties):
    """A benchmark that leaks: the target of u1 is a row of train, that of u2 one of valid; u3's repeat is its own."""
    rows = [
        ("u1", "a", 1, "train"), ("u1", "b", 2, "train"), ("u1", "c", 5, "train"), ("u1", "c", 5, "test"), ("u1", "c", 5, "test"),
        ("u2", "a", 1, "train"), ("u2", "b", 2, "valid"), ("u2", "b", 2, "test"),
        ("u3", "a", 1, "train"), ("u3", "b", 2, "valid"), ("u3", "c", 3, "test"), ("u3", "c", 3, "test"),
    ]  # fmt: skip
    write_csv(tmp_path / "log.csv", "user,item,time,split", rows)
    words = [f"data.duplicates={rule}"] if rule else []
    folder = prepared.prepare(table(tmp_path, "data.split=given", f"data.ties={ties}", *words, name="log.csv"))
    parts, said = three(prepared.load(folder)), capsys.readouterr().err
    if rule == "keep":
        assert parts["u1"] == [["a", "b", "c"], [], ["c", "c"]]
        assert KEY not in removed(folder)
        assert "an earlier part has" not in said
        return
    assert parts == {"u1": [["a", "b", "c"], [], []], "u2": [["a"], ["b"], []], "u3": [["a"], ["b"], ["c"]]}
    assert removed(folder)[KEY] == 2
    assert removed(folder)[f"duplicates ({rule or 'same_time'})"] == 4
    assert "rows of a part that an earlier part has too: 2 of test (the first: user 'u" in said
    assert "set data.duplicates=keep" in said


def test_repeats_inside_one_part_are_plain_repeats(tmp_path, capsys):
    rows = [("a", "x", 1, "train"), ("a", "x", 1, "train"), ("a", "y", 2, "valid"), ("a", "x", 3, "test"), ("a", "x", 3, "test")]  # fmt: skip
    write_csv(tmp_path / "log.csv", "user,item,time,split", rows)
    folder = prepared.prepare(table(tmp_path, "data.split=given", name="log.csv"))
    assert three(prepared.load(folder)) == {"a": [["x"], ["y"], ["x"]]}
    assert KEY not in removed(folder)
    assert "an earlier part has" not in capsys.readouterr().err


def test_of_repeated_item_rows_the_first_value_of_each_attribute_counts(tmp_path, capsys):
    write_csv(tmp_path / "log.csv", "user,item,time", [("a", f"i{k}", k + 1) for k in range(4)])
    items = [("i0", "", ""), ("i0", "Real", ""), ("i0", "Other", "red"), ("i1", "One", ""), ("i2", "Two", "blue"), ("i2", "", "blue"), ("zz", "p", ""), ("zz", "q", "")]  # fmt: skip
    write_csv(tmp_path / "items.csv", "item,title,colour", items)
    folder = prepared.prepare(table(tmp_path, f"data.items={tmp_path}/items.csv", name="log.csv"))
    stored = prepared.load(folder).items
    assert dict(zip(stored["raw"], zip(stored["text"], stored["colour"], strict=True), strict=True)) == {
        "i0": ("Real", "red"), "i1": ("One", ""), "i2": ("Two", "blue"), "i3": ("", ""),
    }  # fmt: skip
    assert removed(folder)["repeated item rows"] == 4
    assert removed(folder)["items whose rows in the item table differ"] == 1
    assert "items whose rows in the item table differ: 1;" in (said := capsys.readouterr().err)
    assert "(item 'i0': title 'Real', not 'Other')" in said


def test_item_rows_that_repeat_word_for_word_are_no_difference(tmp_path, capsys):
    write_csv(tmp_path / "log.csv", "user,item,time", [("a", f"i{k}", k + 1) for k in range(3)])
    write_csv(tmp_path / "items.csv", "item,title", [("i0", "T"), ("i0", "T"), ("i1", "U"), ("i2", "V")])
    folder = prepared.prepare(table(tmp_path, f"data.items={tmp_path}/items.csv", name="log.csv"))
    assert sorted(prepared.load(folder).items["text"]) == ["T", "U", "V"]
    assert "items whose rows in the item table differ" not in removed(folder)
    assert "differ" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train", "test"), r"holds no file for the part 'valid'"),
        (("train", "valid", "dev", "test"), r"holds 2 files \(dev\.csv, valid\.csv\) for the part 'valid'"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused(tmp_path, names, message):
    (tmp_path / "parts").mkdir()
    for name in names:
        write_csv(tmp_path / "parts" / f"{name}.csv", "user,item,time", [("a", "x", 1)])
    with pytest.raises(ValueError, match=message):
        prepared.prepare(table(tmp_path, "data.split=given", name="parts"))


ROWS_OF = {part: [row[:3] for row in SPLIT if row[3] == part] for part in ("train", "valid", "test")}


def put_parts(folder, names, *, n=2, parquet=False, split=None):
    """The rows of SPLIT as files: `names` by part, with {n} for the number of a file; `split`: its column's name."""
    for part, rows in ROWS_OF.items():
        files = n if "{n" in names[part] else 1
        for k in range(files):
            path = folder / names[part].format(n=k)
            path.parent.mkdir(parents=True, exist_ok=True)
            own = [(*row, part) if split else row for row in rows[k::files]]
            frame = pl.DataFrame(own, schema=["user", "item", "time", *([split] if split else [])], orient="row")
            frame.write_parquet(path) if parquet else frame.write_csv(path)


LAYOUTS = {
    "hugging face": "{part}-{{n:05d}}-of-00002.parquet",
    "hugging face, hashed": "{part}-{{n:05d}}-of-00002-a09b74b3ef9c3b56.parquet",
    "amazon 2023": "All_Beauty.{part}.csv",
    "numbered": "{part}_{{n}}.csv",
    "numbered parts": "{part}.part{{n}}.parquet",
    "folders": "{part}/part-{{n}}.csv",
    "folders of spark": "{part}.parquet/part-{{n:05d}}-x.snappy.parquet",
    "hive": "split={part}/part-{{n}}.csv",
    "hive of parquet": "split={part}/{{n}}.parquet",
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("word", ["valid", "validation", "Valid"])
def test_three_parts_are_files_of_any_number(tmp_path, layout, word):
    names = {part: LAYOUTS[layout].format(part=word if part == "valid" else part) for part in ROWS_OF}
    put_parts(tmp_path / "parts", names, parquet=names["train"].endswith("parquet"))
    for beside in ("_SUCCESS", ".train.csv.swp"):
        (tmp_path / "parts" / beside).touch()
    data = prepared.load(prepared.prepare(table(tmp_path, "data.split=given", name="parts")))
    assert three(data) == {
        "a": [["x", "y"], ["z"], ["w", "v"]], "b": [["y", "z"], ["x"], []], "c": [[], [], ["w"]], "d": [["x"], [], []],
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_folder_of_parts_may_have_the_column_split(tmp_path, kind):
    names = {part: f"part-{k}.{kind}" for k, part in enumerate(ROWS_OF)}
    put_parts(tmp_path / "parts", names, parquet=kind == "parquet", split="fold")
    words = ("data.split=given", "data.columns.split=fold")
    data = prepared.load(prepared.prepare(table(tmp_path, *words, name="parts")))
    assert three(data)["b"] == [["y", "z"], ["x"], []]
    with pytest.raises(ValueError, match=r"part-0\.\w+: no column 'split'; found: user, item, time, fold \(set data.columns.split=NAME, or name the files"):  # fmt: skip
        prepared.prepare(table(tmp_path, "data.split=given", name="parts"))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("train-2.csv", r"holds 2 files \(train-2\.csv, train\.csv\) for the part 'train'"),
        ("train.tsv", r"holds 2 files \(train\.csv, train\.tsv\) for the part 'train'"),
        ("Books.train.csv", r"holds 2 files \(Books\.train\.csv, train\.csv\) for the part 'train'"),
    ],
)
def test_files_of_two_names_are_not_put_together(tmp_path, extra, message):
    put_parts(tmp_path / "parts", {part: f"{part}.csv" for part in ROWS_OF})
    write_csv(tmp_path / "parts" / extra, "user,item,time", [("a", "q", 1)])
    with pytest.raises(ValueError, match=message):
        prepared.prepare(table(tmp_path, "data.split=given", name="parts"))


def test_parts_of_two_data_sets_or_with_a_file_too_few_are_refused(tmp_path):
    put_parts(tmp_path / "two", {"train": "A.train.csv", "valid": "A.valid.csv", "test": "B.test.csv"})
    with pytest.raises(ValueError, match=r"A\.valid\.csv and B\.test\.csv are of two data sets"):
        prepared.prepare(table(tmp_path, "data.split=given", name="two"))
    put_parts(tmp_path / "few", {part: part + "-{n}-of-2.csv" for part in ROWS_OF})
    (tmp_path / "few/train-2-of-2.csv").write_bytes((tmp_path / "few/train-1-of-2.csv").read_bytes())
    with pytest.raises(ValueError, match=r"train-0-of-2\.csv: 3 of its 2 files are there"):
        prepared.prepare(table(tmp_path, "data.split=given", name="few"))
    (tmp_path / "few/train-2-of-2.csv").unlink()
    (tmp_path / "few/train-1-of-2.csv").unlink()
    with pytest.raises(ValueError, match=r"train-0-of-2\.csv: 1 of its 2 files are there; fetch the rest"):
        prepared.prepare(table(tmp_path, "data.split=given", name="few"))


def test_what_lies_beside_the_parts_is_told(tmp_path, capsys):
    put_parts(tmp_path / "parts", {part: f"{part}.csv" for part in ROWS_OF})
    write_csv(tmp_path / "parts/items.csv", "item,title", [("x", "X"), ("y", "Y"), ("z", "Z"), ("w", "W"), ("v", "V")])
    words = ("data.split=given", f"data.items={tmp_path}/parts/items.csv")
    prepared.prepare(table(tmp_path, *words, name="parts"))
    assert "are read, and not" not in capsys.readouterr().err
    write_csv(tmp_path / "parts/extra_train.csv", "user,item,time", [("a", "q", 1)])
    prepared.prepare(table(tmp_path, "data.k_core=1", *words, name="parts"))
    assert f"{tmp_path}/parts: train, valid and test are read, and not extra_train.csv" in capsys.readouterr().err


def test_a_given_split_needs_a_table(tmp_path):
    config = cfg.load([f"data.root={tmp_path}", "data.split=given"]).data
    with pytest.raises(ValueError, match=r"data\.split=given needs data\.source=table"):
        prepared.prepare(config)


def cold_table(tmp_path, *more):
    """Case 25 in small: 12 of 20 rows without an interaction, one row twice, one item outside the 2-core."""
    rows = [(f"u{u}", f"i{(u + k) % 8}", 100 * k) for u in range(8) for k in range(4)] + [("u0", "i19", 1)]
    rows += [("all", f"i{k}", 100 * k) for k in range(8)]
    write_csv(tmp_path / "log.csv", "user,item,time", rows)
    items = [(f"i{i}", f"Thing {i}") for i in [*range(20), 3]]
    write_csv(tmp_path / "items.csv", "item,title", items)
    return table(tmp_path, f"data.items={tmp_path}/items.csv", "data.missing_ids=drop", "data.k_core=2", "data.negatives=3", *more, name="log.csv")  # fmt: skip


def test_case_25_item_rows_without_interactions_are_counted_or_kept(tmp_path):
    folders = {word: prepared.prepare(cold_table(tmp_path, f"data.cold_items={word}")) for word in ("drop", "keep")}
    removed = {k: json.loads((folder / "statistics.json").read_text())["removed"] for k, folder in folders.items()}
    assert removed["drop"]["item rows that join with nothing"] == 11
    assert removed["keep"]["item rows that join with nothing"] == 0
    assert {counts["item rows removed with their interactions"] for counts in removed.values()} == {1}
    drop, keep = (prepared.load(folder) for folder in folders.values())
    assert sorted(drop.items["raw"]) == sorted(f"i{i}" for i in range(8))
    assert sorted(keep.items["raw"]) == sorted(f"i{i}" for i in range(19))
    assert dict(zip(keep.items["raw"][:], keep.items["text"][:], strict=True))["i15"] == "Thing 15"
    assert sequences(keep) == sequences(drop)
    has = [data.negatives[:, 0] >= 0 for data in (drop, keep)]
    assert [drop.users["raw"][int(u)] for u in np.flatnonzero(~has[0])] == ["all"]
    assert (has[0] == has[1]).all()
    assert (keep.negatives[~has[1]] == -1).all()
    raw = [np.array(data.items["raw"][:])[data.negatives[has[0]]] for data in (drop, keep)]
    assert (raw[0] == raw[1]).all()  # negatives stay among the items with interactions


def test_ids_do_not_say_which_items_have_interactions(tmp_path):
    """Were they last, an item that is new in the test split would be known by its id."""
    data = prepared.load(prepared.prepare(cold_table(tmp_path, "data.cold_items=keep")))
    has = np.bincount(data.item, minlength=data.n_items) > 0
    assert np.flatnonzero(~has).min() < np.flatnonzero(has).max()
    assert (np.diff(has.astype(int)) != 0).sum() > 2
    assert list(data.items["raw"]) != sorted(data.items["raw"])
