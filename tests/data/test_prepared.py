"""Prepared data hold what the log says, and nothing they should not."""

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
        "repeated item rows": 0,
        "items without text": 4,
    }
    assert report["interactions"] == 5
    assert report["repeats of an earlier item"] == 1


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
