"""Vectors and settings that cannot work, or only just."""

import contextlib

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import prepare_small
from quantizing import QUANTISERS, health_of, never, prepared_order, run

from distrec import config as cfg
from distrec import knobs
from distrec.data import audit, item_codes, store, vectors
from distrec.jobs import embed
from distrec.jobs.codes import fit
from distrec.jobs.codes import report as reports
from distrec.jobs.codes.artefact import Collapsed, uninformative
from distrec.models import quantisers
from distrec.runtime import Ranks


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_vectors_made_elsewhere(small, tmp_path, table, kind):
    place = tmp_path / f"v.{kind}"
    if kind == "npy":
        np.save(place, table)
    else:
        safetensors.torch.save_file({"vectors": torch.from_numpy(table)}, place)
    folder = run(tmp_path / "a", small, *prepared_order(place))
    assert store.verify(folder)["made_by"]["vectors"] == store.file_digest(place)
    assert audit.artefacts_of(small, tmp_path / "a") == ([], [folder])  # not to be judged


def broken(case, table, small, tmp_path):
    """(what is given as codes.vectors, further settings)."""
    place = tmp_path / "v.npy"
    if case == "nan":
        table[[3, 9]] = np.nan
        table[5, 1] = np.inf
    if case == "fewer rows":
        table = table[:-1]
    if case == "truth values":
        table = table > 0
    if case == "one axis":
        table = table[:, 0]
    np.save(place, table)
    if case == "truncated npy":
        place.write_bytes(place.read_bytes()[:-100])
    if case in ("truncated safetensors", "two tensors", "no safetensors"):
        place = tmp_path / "v.safetensors"
        two = {"a": torch.from_numpy(table), "b": torch.from_numpy(table + 1)}
        safetensors.torch.save_file(two if case == "two tensors" else {"a": two["a"]}, place)
        if case == "truncated safetensors":
            place.write_bytes(place.read_bytes()[:-100])
        if case == "no safetensors":
            place.write_bytes(b"\x08\0\0\0\0\0\0\0[1, 2, 3]")
    if case == "other items":
        other = prepare_small(tmp_path, "data.text={item} {title}")
        place = embed.embed(
            cfg.load(["embed.encoder=builtin"]).embed, cfg.load([f"data.root={tmp_path}"]).data, other, Ranks(), never
        )
    if case == "prepared":
        place = small.folder
    if case == "own folder":
        place = tmp_path / "mine"
        place.mkdir()
        safetensors.torch.save_file({"vectors": torch.from_numpy(table)}, place / vectors.FILE)
    if case == "missing":
        place = tmp_path / "none.npy"
    if case == "another kind":
        place = place.rename(tmp_path / "v.bin")
    return place


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("nan", "3 of 149 vectors hold NaN or infinity, such as those of the items"),
        ("fewer rows", "holds 148 vectors, .* has 149 items"),
        ("truth values", "in native byte order, got bool"),
        ("one axis", "of shape"),
        ("truncated npy", "not a complete .npy file"),
        ("truncated safetensors", "truncated: "),
        ("two tensors", "which tensor"),
        ("no safetensors", "not a safetensors file"),
        ("other items", "was made from other item texts"),
        ("prepared", "is no folder of vectors"),
        ("own folder", "no finished artefact of distrec; choose another folder"),
        ("missing", "no such file or folder"),
        ("another kind", "vectors come as"),
    ],
)
def test_bad_vectors_are_one_clear_line(small, tmp_path, table, case, message):
    place = broken(case, table, small, tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        run(tmp_path / "a", small, *prepared_order(place))
    assert "\n" not in str(error.value)


def test_own_vectors_in_any_order_give_the_codes_of_their_items(small, tmp_path, table):
    """Case 29: a .npy in the order of a user's own files, with its ids beside it."""
    np.save(tmp_path / "right.npy", table)
    order = np.argsort(small.items["raw"])
    np.save(tmp_path / "own.npy", table[order])
    (tmp_path / "own.ids.txt").write_text("".join(f"{small.items[int(i)]['raw']}\n" for i in order))
    right = run(tmp_path / "a", small, *prepared_order(tmp_path / "right.npy"))
    own = run(tmp_path / "a", small, f"codes.vectors={tmp_path}/own.npy")
    assert torch.equal(item_codes.load(own).codes, item_codes.load(right).codes)
    with pytest.raises(ValueError, match=r"vectors_order=prepared contradicts the ids"):
        run(tmp_path / "a", small, *prepared_order(tmp_path / "own.npy"))
    (tmp_path / "own.ids.txt").unlink()
    with pytest.raises(ValueError, match="does not say which row is which item"):
        run(tmp_path / "a", small, f"codes.vectors={tmp_path}/own.npy")


def test_items_without_a_vector_of_their_own_count_as_uninformative(small, tmp_path, table):
    np.savez(tmp_path / "v.npz", ids=np.array(small.items["raw"][30:]), vectors=table[30:])
    words = (f"codes.vectors={tmp_path}/v.npz", "codes.name=kmeans", "codes.size=32")
    with pytest.raises(ValueError, match=r"30 of 149 items have no vector"):
        run(tmp_path, small, *words)
    with pytest.raises(Collapsed, match=r"30 of 149 items \(20\.1%\) have a zero vector"):
        run(tmp_path, small, *words, "codes.vectors_missing=zero", "codes.gate=true")


def test_an_order_does_nothing_where_it_is_known(small, tmp_path):
    with pytest.raises(ValueError, match=r"codes\.vectors_order=prepared does nothing with .*vectors-"):
        run(tmp_path, small, "codes.vectors_order=prepared")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("codes.size=200",), "codes.size=200 for 149 items"),
        (("codes.covariance=full",), "covariance_type=full needs more rows a component than dimensions"),
        (("codes.pca=500",), "500 principal axes of vectors with"),
        (("codes.name=kmeans", "codes.assignment=posterior"), "posterior needs a mixture: codes.name=gmm"),
        (("codes.category=colour",), "items have no such column; they have: raw, text, title"),
        (("codes.levels=16", "codes.size=64"), "exceed 63 bits"),
        (("codes.name=kmeans", "codes.precision=tf32"), "unknown config key 'codes.precision'"),
    ],
)
def test_settings_that_cannot_work_are_one_clear_line(small, tmp_path, args, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, small, *args)


@pytest.mark.parametrize("name", QUANTISERS)
def test_zero_rows_equal_rows_and_constant_columns(small, tmp_path, table, name):
    table[:20] = 0
    table[40:55] = table[40]
    table[:, 3] = 0.5
    table[:20, 3] = 0
    np.save(tmp_path / "v.npy", table)
    folder = run(tmp_path, small, *QUANTISERS[name], *prepared_order(tmp_path / "v.npy"), "codes.size=32")
    report = health_of(folder)
    assert report["zero_vectors"] == 20
    assert "20 items have a zero vector" in reports.table(report)
    if name != "balanced":
        assert report["collisions"]["largest"] >= 15


def test_items_of_which_nothing_is_known_shut_the_gate_before_anything_is_fitted(small, tmp_path, table, monkeypatch):
    """30 of 149 zero vectors are more than 20 %, 29 are not."""
    table[:30] = 0
    args = (*prepared_order(tmp_path / "v.npy"), "codes.name=kmeans", "codes.size=32")
    args += ("codes.gate=true", "codes.max_collisions=1", "codes.min_used=0")
    np.save(tmp_path / "v.npy", table)
    with monkeypatch.context() as patch:
        patch.setattr(fit, "turned", lambda *_: pytest.fail("fitted"))
        with pytest.raises(Collapsed, match=r"30 of 149 items \(20\.1%\) have a zero vector, above codes\.max_uninfo"):
            run(tmp_path, small, *args)
    assert run(tmp_path, small, *args, "codes.max_uninformative=0.3")
    with pytest.raises(Collapsed, match=r"(?s)perplexity.*30 of 149 items .*Give data\.text more fields"):
        run(tmp_path, small, *args)  # made already, but not good enough now
    assert "20.1%" in health_of(run(tmp_path, small, *args, "codes.gate=false", "codes.max_iter=9"))["complaints"][0]
    table[29] = 1
    np.save(tmp_path / "v.npy", table)
    assert not health_of(run(tmp_path, small, *args))["complaints"]


@pytest.mark.parametrize(
    ("n_zero", "share", "shut"), [(25, 0.25, False), (26, 0.25, True), (0, 0.0, False), (1, 0.0, True)]
)
def test_the_gate_for_zero_vectors_shuts_above_its_share(n_zero, share, shut):
    config = knobs.Gmm(max_uninformative=share)
    assert bool(uninformative(n_zero, 100, config)) == shut


def test_thousands_of_equal_texts_name_their_bucket(small, tmp_path, table):
    table[:100] = 1
    np.save(tmp_path / "v.npy", table)
    with pytest.raises(ValueError, match=r"bucket \(\d+, \d+, \d+\) holds 100 items, its last code only 16"):
        run(tmp_path, small, *prepared_order(tmp_path / "v.npy"))


def test_vectors_that_are_all_the_same_or_out_of_scale(small, tmp_path, table):
    for name, value, message in (("same", table * 0 + 2, "vectors are the same"), ("huge", table * 1e18, "scale them")):
        np.save(tmp_path / f"{name}.npy", value)
        with pytest.raises(ValueError, match=message):
            run(tmp_path, small, *prepared_order(tmp_path / f"{name}.npy"))


def test_equal_texts_are_refused_before_anything_is_fitted(tmp_path, monkeypatch):
    data = prepare_small(tmp_path, "data.text=the same")
    monkeypatch.setattr(quantisers, "tensors_of", lambda *_: pytest.fail("fitted"))
    with pytest.raises(ValueError, match="149 items have the same text 'the same', the last code tells 16 apart"):
        run(tmp_path, data)


def test_as_many_equal_texts_as_the_last_code_tells_apart_are_enough(small, monkeypatch):
    config = cfg.load([]).codes
    for n, is_refused in ((16, False), (17, True)):
        monkeypatch.setattr(vectors, "text_batches", lambda *_, n=n: [["a", "b"], ["a"] * (n - 1)])
        refusal = pytest.raises(ValueError, match=f"{n} items have the same text 'a', the last code tells 16 apart")
        with refusal if is_refused else contextlib.nullcontext():
            fit.check_texts(small, config, 16)
    fit.check_texts(small, cfg.load(["codes.name=balanced"]).codes, 2)
    fit.check_size(16, 16)
    with pytest.raises(ValueError, match=r"codes\.size=17 for 16 items: take at most 8"):
        fit.check_size(17, 16)


def test_an_item_is_of_the_label_that_most_items_carry_and_items_without_one_count_for_none():
    labels = ["Toys|Games", "Games", "Unknown|Games", "unknown", "", "Toys|", "Art|Box"]
    found = reports.categories(labels)
    assert found.tolist() == ["Games", "Games", "Games", "", "", "Toys", "Box"]  # the later of equally frequent ones
    levels = [{}, {}]
    codes = np.array([[0, 0], [0, 1], [0, 2], [1, 3], [2, 4], [1, 5], [2, 6]])
    reports.add_nmi(levels, found, codes)
    assert levels[0]["nmi"] == pytest.approx(1)  # as far as categories are known, a code is a category
    assert levels[1]["nmi"] < 0.9
    reports.add_nmi(levels, np.array([""] * 7), codes)
    assert levels[0]["nmi"] is None


def test_a_report_tells_norms_not_energies_and_what_was_left_out():
    level = {"used": 3, "size": 4, "perplexity": 2.6, "entropy": 1.38, "largest": 5, "residual_before": 4.0, "residual": 0.25,
             "residual_share": 0.0625, "log_likelihood": -1.5, "iterations": 7}  # fmt: skip
    report = {"levels": [level], "items": 9, "collisions": {"items": 3, "share": 1 / 3, "groups": 1, "largest": 3}}
    head, row, shared = reports.table(report).splitlines()
    assert row.split() == [
        "1",
        "3/4",
        "3",
        "1.38",
        "5",
        "2.000→0.500",
        "0.062",
        "–",
        "–",
        "7",
        "iterations,",
        "-1.50",
        "nat",
    ]
    assert head.index("level") == 0
    assert shared == "9 items; 3 (33.3%) share all codes with another, in 1 groups of at most 3"
    grown = reports.table(
        report | {"zero_vectors": 2, "new_items": 4, "kept_items": 5, "gone_items": 6, "complaints": ["x"]}
    )
    assert [line.split(" ")[0] for line in grown.splitlines()[3:]] == ["2", "4", "6", "collapsed:"]


def test_a_state_is_told_by_its_level_from_1_and_its_measure():
    state = {"0.inertia": torch.tensor(9.0), "1.inertia": torch.tensor(2.5), "1.done": torch.tensor(False)}
    assert fit.how_far(state) == "level 2, 2.50 inertia"
    assert fit.how_far({"0.lower_bound": torch.tensor(-torch.inf)}) == "level 1"
    assert fit.how_far({"epoch": torch.tensor(3), "loss": torch.tensor(0.125)}) == "loss 0.1250"


def test_a_category_may_hold_any_text(small, tmp_path):
    odd = np.array(["$\\frac{a$", "25_$50^", "日本"] * 20)
    reports.picture(tmp_path / "p.png", odd, np.arange(60) % 8, 8, "title with $ in it$")
    assert (tmp_path / "p.png").stat().st_size > 5000


def test_one_item():
    assert fit.code_size(1) == 2
    with pytest.raises(ValueError, match=r"codes\.size=2 for 1 items"):
        fit.check_size(fit.code_size(1), 1)
