"""Seals of frozen weights: what changes them, against sums in Python's own integers; what it costs the host."""

import hashlib
import time

import numpy as np
import pytest
import torch
from decoders import frellm, saved
from pretended import Gpu

from distrec.models.backbone import _frozen
from distrec.models.language import seal
from distrec.models.language.seal import digest, fingerprint

WORDS = 2**14


def weights(dtype, n=WORDS + 1002):
    drawn = torch.randint(-(2**31), 2**31, (n,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    return drawn.view(dtype) if dtype.is_floating_point else drawn.view(torch.uint8)


def mark(*tensors):
    return fingerprint((str(i), tensor) for i, tensor in enumerate(tensors))


def by_hand(words):
    """(S, P) of a row, in Python's integers."""
    signed = [int(word) for word in words]
    sums = sum(signed), sum(word * (2 * c + 1) ** 3 for c, word in enumerate(signed))
    return [(value + 2**63) % 2**64 - 2**63 for value in sums]


def test_a_row_is_its_two_sums():
    words = weights(torch.uint8)
    found = seal._sums(words)
    rows = torch.nn.functional.pad(words.view(torch.int32), (0, 2 * WORDS - len(words) // 4)).view(2, -1)
    assert found.tolist() == [by_hand(row) for row in rows]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.float64], ids=str)
def test_every_flipped_bit_is_seen_wherever_it_is(dtype):
    tensor = weights(dtype)
    before, raw = mark(tensor), tensor.view(torch.uint8)
    places = [0, 1, 2, 3, 4 * WORDS - 1, 4 * WORDS, len(raw) - 1, *range(5, len(raw), 9973)]
    for bit, place in enumerate(places):
        raw[place] ^= 1 << bit % 8
        assert mark(tensor) != before, place
        raw[place] ^= 1 << bit % 8
    assert mark(tensor) == before == mark(tensor.clone())


def test_the_top_bit_of_two_words_is_seen_too():
    """Where a product with an odd number would forget which word it was: 2³¹ times an even difference of weights."""
    words = torch.zeros(WORDS * 2, dtype=torch.int32)
    words[3] = -(2**31)
    seen = {mark(words)}
    for place in [0, 1, 2, 4, 7, 8195, WORDS - 1, WORDS, WORDS + 3]:
        swapped = words.clone()
        swapped[3], swapped[place] = words[place], words[3]
        seen.add(mark(swapped))
    assert len(seen) == 10


def test_swapped_words_rows_tensors_and_names_are_seen():
    tensor = weights(torch.float32)
    before = mark(tensor)
    rng = np.random.default_rng(0)
    for one, other in [(0, 1), (5, 5 + WORDS), *rng.integers(len(tensor), size=(30, 2)).tolist()]:
        swapped = tensor.clone()
        swapped[one], swapped[other] = tensor[other], tensor[one]
        assert mark(swapped) != before
    assert mark(tensor.roll(WORDS)) != before
    a, b = torch.randn(7, 3), torch.randn(7, 3)
    assert mark(a, b) != mark(b, a)
    assert fingerprint(iter([("a", a), ("b", b)])) != fingerprint(iter([("b", a), ("a", b)]))
    assert fingerprint(iter([("a", a), ("b", b)])) == fingerprint(iter([("b", b), ("a", a)]))
    assert len({mark(a), mark(a.T), mark(a.view(3, 7)), mark(a.view(torch.int32)), mark(a.flatten()[:20])}) == 5


def test_zeros_are_counted():
    assert len({mark(torch.zeros(n, dtype=torch.uint8)) for n in (0, 1, 2, 4, 5)}) == 5


@pytest.mark.parametrize("piece", [1, 2**16, 2**17, 2**26])
def test_the_pieces_do_not_matter(piece, monkeypatch):
    tensor = weights(torch.bfloat16, 3 * WORDS + 5)
    before = mark(tensor)
    monkeypatch.setitem(seal._PIECE, "cpu", piece)
    assert mark(tensor) == before


def test_a_view_that_begins_between_two_words_is_read():
    buffer = torch.arange(2 * WORDS + 9).bfloat16()
    for low in range(4):
        part = buffer[low : low + 2 * WORDS]
        assert mark(part) == mark(part.clone())


@pytest.mark.parametrize("quantise", ["none", "nf4"])
def test_the_host_waits_once_for_all_tensors(tmp_path, quantise):
    model = frellm(saved(tmp_path), quantise=quantise)
    with Gpu() as gpu:
        there = [(name, tensor.data.to("cuda")) for name, tensor in _frozen(model.backbone.decoder)]
        gpu.waits.clear()
        found = fingerprint(iter(there))
        assert sum(gpu.waits.values()) == 1, gpu.waits
    assert not gpu.faults
    assert found == model.backbone.mark
    assert len(there) > 20


@pytest.mark.parametrize("quantise", ["none", "nf4"])
def test_both_seals_see_each_frozen_tensor_change(tmp_path, quantise):
    model = frellm(saved(tmp_path, layers=1), quantise=quantise, tune="lora")
    model.check_seal(), model.verify_seal()
    for name, tensor in _frozen(model.backbone.decoder):
        raw = tensor.data.view(-1).view(torch.uint8)
        raw[len(raw) // 2] ^= 64
        for compare in (model.check_seal, model.verify_seal):
            with pytest.raises(RuntimeError, match="frozen backbone has changed"):
                compare()
        raw[len(raw) // 2] ^= 64
        assert name.count("base_layer") == 0
    model.check_seal(), model.verify_seal()


def test_a_partitioned_weight_is_gathered(tmp_path):
    """As under ZeRO-3: outside of `whole` a weight is empty."""
    from contextlib import contextmanager

    full = {name: torch.randn(5, 3) for name in "ab"}
    parts = {name: tensor.clone() for name, tensor in full.items()}
    for tensor in parts.values():
        tensor.data = torch.empty(0)
    names = {id(tensor): name for name, tensor in parts.items()}

    @contextmanager
    def whole(tensor):
        tensor.data = full[names[id(tensor)]]
        yield
        tensor.data = torch.empty(0)

    for seal_of in (fingerprint, digest):
        assert seal_of(iter(parts.items()), whole) == seal_of(iter(full.items()))


def test_a_sketch_has_seals_without_bytes():
    meta = [("a", torch.empty(3, device="meta"))]
    assert digest(iter(meta)) == hashlib.sha256(b"a").hexdigest()
    assert fingerprint(iter(meta)) == fingerprint(iter(meta)) != fingerprint(iter([("b", meta[0][1])]))


@pytest.mark.slow
def test_the_fingerprint_is_not_slower_than_sha256():
    tensor = torch.randn(2**25)
    seconds = {}
    for name, seal_of in (("sha256", digest), ("fingerprint", fingerprint)):
        times = []
        for _ in range(3):
            began = time.process_time()
            seal_of(iter([("a", tensor)]))
            times.append(time.process_time() - began)
        seconds[name] = min(times)
    assert seconds["fingerprint"] < seconds["sha256"]


def test_every_tensor_that_four_bits_are_unpacked_by_is_sealed(tmp_path):
    model = frellm(saved(tmp_path, layers=1), quantise="nf4")
    packing = model.backbone.layers[0].mlp.up_proj.weight.quant_state
    parts = [packing.absmax, packing.code, packing.offset, packing.state2.absmax, packing.state2.code]
    for part in parts:
        raw = part.view(-1).view(torch.uint8)
        raw[0] ^= 1
        with pytest.raises(RuntimeError, match="frozen backbone has changed"):
            model.check_seal()
        raw[0] ^= 1
        model.check_seal()
