"""Item codes there and back, without a fit: a handful of items whose codes are written down."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import prepare_small

from distrec.data import item_codes, store
from distrec.data.item_codes import ItemCodes

SIZES = (4, 3, 2)
CODES = torch.tensor([[3, 2, 1], [0, 0, 0], [0, 2, 1], [1, 0, 0]])


def test_codes_lead_back_to_whose_they_are_and_nobody_s_to_minus_one():
    codes = ItemCodes.of(CODES, SIZES)
    assert codes.items(CODES).tolist() == [0, 1, 2, 3]
    assert codes.items(torch.tensor([[3, 2, 0], [1, 0, 1], [0, 1, 0]])).tolist() == [-1, -1, -1]
    # beyond a size: packed into one number they would be another item's codes, or beyond the last
    assert codes.items(torch.tensor([[0, 3, 0], [0, -1, 6], [4, 0, 0], [-1, 3, 0], [9, 9, 9]])).tolist() == [-1] * 5


@pytest.mark.parametrize("bad", [[4, 0, 0], [0, 3, 0], [0, 0, 2], [0, -1, 0], [-1, 0, 0]])
def test_a_code_outside_its_size_is_refused(bad):
    with pytest.raises(ValueError, match=r"outside 0 … size-1 of \(4, 3, 2\)"):
        ItemCodes.of(torch.cat([CODES, torch.tensor([bad])]), SIZES)


def test_two_items_with_the_same_codes_are_both_named():
    with pytest.raises(ValueError, match=r"items 2 and 4 have the same codes \[0, 2, 1\]"):
        ItemCodes.of(torch.cat([CODES, CODES[2:3]]), SIZES)


def codes_of(n):
    ids = torch.arange(n)
    return ItemCodes.of(torch.stack([ids // 16, ids % 16], 1), (-(-n // 16), 16))


def test_an_artefact_is_read_for_its_own_items_alone_and_never_written_when_it_leads_astray(small, tmp_path):
    codes, made = codes_of(small.n_items), {"items": item_codes.items_digest(small)}
    target = store.write(tmp_path / "codes-1", made, lambda folder: item_codes.save(folder, codes, {}, {"a": 1}, small))
    found = item_codes.load(target, small)
    assert torch.equal(found.codes, codes.codes)
    assert found.items(codes.codes).tolist() == list(range(small.n_items))
    assert item_codes.raw_ids(target) == list(small.items["raw"])
    assert json.loads((target / "health.json").read_text()) == {"a": 1, "sizes": list(codes.sizes)}
    other = prepare_small(tmp_path, "data.synthetic.items=60")
    with pytest.raises(ValueError, match="about other items than"):
        item_codes.load(target, other)
    turned = ItemCodes(codes.codes, codes.sizes, codes.keys, codes.order.flip(0))
    with pytest.raises(RuntimeError, match="do not lead back"):
        item_codes.save(tmp_path, turned, {}, {}, small)


def test_the_digest_of_items_takes_each_name_and_their_order(small):
    def digest(names):
        return item_codes.items_digest(replace(small, items=type(small.items).from_dict({"raw": names})))

    names = [str(i) for i in range(65_537)]  # one beyond a stretch
    assert len({digest(each) for each in (names, [*names[:-1], "x"], names[::-1], names[:-1])}) == 4
