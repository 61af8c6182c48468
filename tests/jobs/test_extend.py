"""Codes for a grown catalogue."""

from functools import partial

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
from quantizing import QUANTISERS, health_of, prepared_order, run

from distrec import config as cfg
from distrec.data import item_codes, prepared, vectors
from distrec.jobs import embed
from distrec.jobs.codes import report as reports
from distrec.jobs.codes.extend import extend, grown


class Grown:
    """A catalogue, and the same one later with more items."""

    def __init__(self, folder, extra=30):
        rng = np.random.default_rng(0)
        items = [f"i{n}" for n in range(100 + extra)]
        words = ["nail", "polish", "hair", "oil", "red", "blue", "soap", "brush", "cream", "night", "day", "rose"]
        titles = [" ".join(rng.choice(words, 4)) for _ in items]
        pl.DataFrame({"item": items, "title": titles}).write_csv(folder / "items.csv")
        for name, n in (("before", 100), ("after", 100 + extra)):
            rows = [(f"u{u}", items[(7 * u + 11 * t) % n], t) for u in range(60) for t in range(12)]
            rows += [(f"v{i}", items[i], t) for i in range(n) for t in range(3)]
            pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").write_csv(folder / f"{name}.csv")
        self.args = [f"data.items={folder}/items.csv", "data.source=table", f"data.root={folder}/artefacts"]
        self.before, self.after = (self._prepare(folder / f"{name}.csv") for name in ("before", "after"))

    def _prepare(self, path):
        return prepared.load(prepared.prepare(cfg.load([*self.args, f"data.path={path}", "data.negatives=0"]).data))


def newest(root):
    return max(p.stat().st_mtime for p in root.glob("vectors-*"))


def test_a_catalogue_that_did_not_grow_keeps_all_its_codes(tmp_path):
    grown = Grown(tmp_path)
    root = tmp_path / "artefacts"
    known = run(root, grown.after)
    folder = run(root, grown.before, make=partial(extend, known))
    was = dict(zip(item_codes.raw_ids(known), item_codes.load(known).codes.tolist(), strict=True))
    now = dict(zip(item_codes.raw_ids(folder), item_codes.load(folder).codes.tolist(), strict=True))
    assert len(now) == 100
    assert all(was[raw] == codes for raw, codes in now.items())
    assert (health_of(folder)["new_items"], health_of(folder)["gone_items"]) == (0, 30)
    assert "30 known items are not in this catalogue" in reports.table(health_of(folder))


@pytest.mark.parametrize("name", ["gmm", "kmeans", "rqvae", "gmm-posterior-full"])
def test_new_items_get_codes_and_known_ones_keep_theirs(tmp_path, name):
    grown = Grown(tmp_path)
    root = tmp_path / "artefacts"
    known = run(root, grown.before, *QUANTISERS[name])
    folder = run(root, grown.after, make=partial(extend, known))
    before, after = item_codes.load(known), item_codes.load(folder, grown.after)
    was = dict(zip(item_codes.raw_ids(known), before.codes.tolist(), strict=True))
    now = dict(zip(item_codes.raw_ids(folder), after.codes.tolist(), strict=True))
    assert len(now) == 130
    assert all(now[raw] == was[raw] for raw in was)
    table, _ = vectors.load(next(p for p in root.glob("vectors-*") if p.stat().st_mtime == newest(root)), grown.after)
    if name == "kmeans":
        left = torch.from_numpy(np.array(table)).double()
        for number in range(3):
            book = safetensors.torch.load_file(known / "levels.safetensors")[f"{number}.codebook"]
            code = torch.cdist(left, book).argmin(1)
            fresh = torch.tensor([raw not in was for raw in grown.after.items["raw"]])
            assert torch.equal(after.codes[fresh, number].long(), code[fresh])
            left = left - book[code]
    report = health_of(folder)
    assert (report["kept_items"], report["new_items"]) == (100, 30)
    assert item_codes.raw_ids(folder) == list(grown.after.items["raw"])


def test_a_grown_catalogue_needs_the_same_encoder_and_the_same_width(tmp_path):
    grown = Grown(tmp_path)
    root = tmp_path / "artefacts"
    known = run(root, grown.before)
    other = embed.locate(cfg.load(["embed.encoder=builtin"]).embed, root, grown.after)
    grow = partial(extend, known)
    with pytest.raises(ValueError, match="another encoder"):
        run(root, grown.after, f"embed.encoder={other}", make=grow)
    with pytest.raises(ValueError, match=r"was made with embed\.normalize=True, now False"):
        run(root, grown.after, "embed.normalize=false", make=grow)
    with pytest.raises(ValueError, match=r"was made with data\.text='\{title\}', now"):
        run(root, grown.after, "data.text={item} {title}", make=grow)
    with pytest.raises(ValueError, match="is about other items than"):
        item_codes.load(known, grown.after)
    for folder in (next(root.glob("vectors-*")), next(root.glob("encoder-*")), tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="is no folder of codes"):
            run(root, grown.after, make=partial(extend, folder))
    np.save(tmp_path / "v.npy", np.ones((grown.before.n_items, 5), np.float32))
    with pytest.raises(ValueError, match=r"another encoder|dimensions"):
        run(root, grown.before, *prepared_order(tmp_path / "v.npy"), make=grow)


def test_vectors_of_new_items_are_checked_too(small, tmp_path, table):
    np.save(tmp_path / "v.npy", table)
    known = run(tmp_path, small, *prepared_order(tmp_path / "v.npy"))
    with pytest.raises(ValueError, match=r"give codes\.vectors=FILE for these items too"):
        run(tmp_path, small, make=partial(extend, known))
    table[7] = np.nan
    np.save(tmp_path / "w.npy", table)
    with pytest.raises(ValueError, match="1 of 149 vectors hold NaN or infinity"):
        run(tmp_path, small, *prepared_order(tmp_path / "w.npy"), make=partial(extend, known))


def test_known_items_keep_their_codes_whatever_would_be_found_now():
    before = item_codes.ItemCodes.of(torch.tensor([[0, 1, 0], [0, 1, 1], [2, 2, 0]]), (4, 4, 4))
    found = torch.tensor([[3, 3], [0, 1], [2, 2], [3, 3]])
    codes, digit, is_new = grown(before, ["a", "b", "c"], ["c", "new", "a", "newer"], found)
    assert is_new.tolist() == [False, True, False, True]
    assert codes.tolist() == [[2, 2], [0, 1], [0, 1], [3, 3]]
    assert digit.tolist() == [0, 2, 0, 0]
