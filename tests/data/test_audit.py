"""Plant each leak and see it caught; clean data and a clean run give none."""

from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from conftest import prepare_small
from datasets import Dataset

from distrec.data import audit, store


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return prepare_small(tmp_path_factory.mktemp("audit"), "data.synthetic.users=400")


def found(data, *folders):
    return [finding.check for finding in audit.audit(data, folders)]


def texts(data, changed):
    rows = data.items.to_dict()
    rows["text"] = [changed.get(i, text) for i, text in enumerate(rows["text"])]
    return replace(data, items=Dataset.from_dict(rows))


def names(table, prefix):
    rows = table.to_dict()
    rows["raw"] = [f"{prefix}{name}" for name in rows["raw"]]
    return Dataset.from_dict(rows)


def test_clean_data_has_no_finding(clean, beauty):
    assert found(clean) == []
    assert found(beauty) == []


def test_a_target_that_the_user_has_had_is_told_and_no_leak(clean):
    assert audit.repeated_targets(clean) == []
    item = clean.item.copy()
    item[clean.valid_end[[7, 9]]] = item[clean.start[[7, 9]]]
    repeated = replace(clean, item=item)
    assert audit.audit(repeated, []) == []
    (told,) = audit.repeated_targets(repeated)
    assert told.startswith(f"2 of {len(clean.targets('test')[0])} test targets (")
    assert f"user {clean.users[7]['raw']}, item {clean.items[int(item[clean.start[7]])]['raw']})" in told
    item[clean.train_end[3]] = item[clean.start[3]]
    assert audit.repeated_targets(replace(clean, item=item))[0].startswith("1 of ")


@pytest.mark.parametrize("by", ["sequences", "test"])
def test_ids_in_the_order_of_their_appearance(clean, by):
    sequence = clean.item if by == "sequences" else clean.item[clean.valid_end]
    first = np.full(clean.n_items, len(sequence) + 1)
    seen, place = np.unique(sequence, return_index=True)
    first[seen] = place
    new = np.empty(clean.n_items, np.int32)
    new[np.argsort(first, kind="stable")] = np.arange(clean.n_items)
    checks = found(replace(clean, item=new[clean.item], negatives=None))
    assert any(check.startswith("ids follow the order of") for check in checks)


def test_a_negative_that_is_a_positive(clean):
    negatives = clean.negatives.copy()
    negatives[11, 4] = clean.item[clean.valid_end[11]]
    (finding,) = audit.audit(replace(clean, negatives=negatives), [])
    assert finding.check == "negative that is a positive"
    assert f"user {clean.users[11]['raw']} negative 4" in str(finding)


def test_an_item_text_that_names_its_test_user(clean):
    data = replace(clean, users=names(clean.users, "user"))
    target = int(data.item[data.valid_end[3]])
    told = texts(data, {target: f"A kettle, last bought by {data.users[3]['raw']}"})
    assert found(data) == []
    assert found(told) == ["a test interaction names its user in an item text"]


def test_an_item_text_that_names_the_next_item(clean):
    data = replace(clean, items=names(clean.items, "SKU"))
    before, target = (int(data.item[data.valid_end[3] - back]) for back in (1, 0))
    told = texts(data, {before: f"A kettle. Also bought: {data.items[target]['raw']}"})
    assert found(data) == []
    assert "a test interaction is named by the item before it in an item text" in found(told)


def test_item_texts_that_count_test_interactions(clean):
    every = np.bincount(clean.item, minlength=clean.n_items)
    train = np.bincount(clean.item[clean.is_train()], minlength=clean.n_items)
    told = texts(clean, {i: f"sold {n} times" for i, n in enumerate(every)})
    honest = texts(clean, {i: f"sold {n} times" for i, n in enumerate(train)})
    assert found(told) == ["item text counts held-out interactions"]
    assert found(honest) == []


def artefact(data, folder, made_by=None, **tensors):
    def fill(scratch):
        safetensors.numpy.save_file(tensors, scratch / "x.safetensors")

    return store.write(folder, {"data": data.stamp, "fitted_on": "train"} if made_by is None else made_by, fill)


def train_edges(data, mask):
    user = np.repeat(np.arange(data.n_users), np.diff(data.start))
    inside = mask[1:] & (user[1:] == user[:-1])
    return data.item[:-1][inside].astype(np.int64), data.item[1:][inside].astype(np.int64)


@pytest.mark.parametrize("kind", ["graph", "item table", "codes"])
def test_an_artefact_that_read_a_held_out_interaction(clean, tmp_path, kind):
    train = clean.is_train()
    leaked = train.copy()
    leaked[clean.valid_end] = True  # the test interactions

    def tensors(mask):
        counts = np.bincount(clean.item[mask], minlength=clean.n_items)
        if kind == "graph":
            row, column = train_edges(clean, mask)
            return {"row": row, "column": column, "seen": np.bincount(clean.item[train], minlength=clean.n_items)}
        if kind == "item table":
            return {"item_table": np.zeros((clean.n_items, 4), np.float32), "seen": counts}
        return {"codes": np.zeros((clean.n_items, 4), np.int64), "seen": counts}

    honest = artefact(clean, tmp_path / "honest", **tensors(train))
    told = artefact(clean, tmp_path / "told", **tensors(leaked))
    assert found(clean, honest) == []
    (check,) = found(clean, told)
    assert "told" in check


def test_an_artefact_must_say_what_it_was_fitted_on(clean, tmp_path):
    silent = artefact(
        clean, tmp_path / "silent", {"data": clean.stamp}, item_table=np.zeros((clean.n_items, 4), np.float32)
    )
    assert any("fitted on None" in check for check in found(clean, silent))
    unseen = artefact(clean, tmp_path / "unseen", item_table=np.zeros((clean.n_items, 4), np.float32))
    assert any("does not say how often" in check for check in found(clean, unseen))
    text = artefact(
        clean,
        tmp_path / "text",
        {"data": clean.stamp, "fitted_on": "text"},
        codes=np.zeros((clean.n_items, 4), np.int64),
    )
    assert found(clean, text) == []


def test_an_artefact_of_other_data_or_with_a_flipped_byte_is_refused(clean, tmp_path):
    with pytest.raises(ValueError, match="belongs to other data"):
        found(clean, artefact(clean, tmp_path / "other", seen=np.zeros(3, np.int64)))
    folder = artefact(clean, tmp_path / "flipped", seen=np.zeros(clean.n_items, np.int64))
    path = folder / "x.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match="corrupt"):
        found(clean, folder)


def test_nothing_is_judged_in_silence(clean, tmp_path):
    own = artefact(clean, tmp_path / "own", seen=np.zeros(clean.n_items, np.int64))
    foreign = artefact(clean, tmp_path / "foreign", {"data": "of others", "fitted_on": "train"})
    assert audit.artefacts_of(clean, tmp_path) == ([own], [foreign])
    with pytest.raises(ValueError, match="no such folder"):
        audit.artefacts_of(clean, tmp_path / "nope")
    stamp = own / store.STAMP
    whole = stamp.read_text()
    stamp.write_text(whole.replace(clean.stamp[:8], "00000000"))
    with pytest.raises(ValueError, match="own is corrupt"):
        audit.artefacts_of(clean, tmp_path)
    stamp.unlink()
    with pytest.raises(ValueError, match=r"own has no stamp\.json"):
        audit.artefacts_of(clean, tmp_path)
