"""What a meter says against sums worked out by hand; the table of cards against itself."""

from types import SimpleNamespace
from typing import get_args, get_type_hints

import pytest
import torch
from pretended import Gpu
from torch import nn

from distrec.engine.costs import cards, meter
from distrec.engine.costs.meter import Meter
from distrec.jobs.parts.estimate import Cluster
from distrec.runtime import Ranks

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
HALF, FULL = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100_pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100_40"),
        ("A100-PCIE-40GB", "a100_40"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA B200", "b200"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA L40", None),
        ("", None),
    ],
)
def test_a_card_is_known_by_the_name_that_its_driver_gives(name, key):
    assert cards.named(name) == (cards.DEVICES[key] if key else None)


def test_the_rates_of_the_cards_are_dense_and_those_of_their_sheets():
    rates = {key: (d.bf16 / 1e12, d.tf32 / 1e12, d.float32 / 1e12) for key, d in cards.DEVICES.items()}
    assert rates["h100"] == rates["h200"] == (989, 495, 67)
    assert rates["h100_pcie"] == (756, 378, 51)
    assert rates["a100"] == rates["a100_40"] == (312, 156, 19.5)
    assert rates["b200"] == (2250, 1125, 75)
    assert all(bf16 >= tf32 >= float32 for bf16, tf32, float32 in rates.values())
    assert set(get_args(get_type_hints(Cluster)["gpu"])) == {*cards.DEVICES, "cpu"}


@pytest.mark.parametrize(
    ("key", "sparse", "both_ways", "memory"),
    [
        ("b200", 4500, 1800, 8000), ("h200", 1979, 900, 4800), ("h100", 1979, 900, 3350), ("h100_pcie", 1513, 128, 2000),
        ("a100", 624, 600, 2039), ("a100_40", 624, 600, 1555), ("l40s", 733, 64, 864), ("l4", 242, 64, 300),
        ("a6000", 310, 64, 768), ("rtx4090", 330, 64, 1008), ("v100", None, 300, 900),
    ],
)  # fmt: skip
def test_what_a_sheet_prints_with_sparsity_or_for_both_ways_of_a_link_is_halved(key, sparse, both_ways, memory):
    """TFLOP/s of bfloat16, and GB/s of NVLink or PCIe x16 and of the memory, as the sheets print them."""
    card = cards.DEVICES[key]
    assert sparse is None or card.bf16 / 1e12 == pytest.approx(sparse / 2, rel=0.02)
    assert card.inside / 1e9 == pytest.approx(both_ways / 2)
    assert card.memory / 1e9 == pytest.approx(memory, rel=0.02)
    assert card.between <= card.inside


def test_a_type_has_its_own_peak_and_tf32_only_where_it_is_chosen():
    card = cards.DEVICES["h100"]
    assert card.peak(HALF, "no") == card.peak(torch.float16, "tf32") == 989e12
    assert card.peak(FULL, "no") == card.peak(FULL, "bf16") == 67e12
    assert card.peak(FULL, "tf32") == 495e12


class Clock:
    """A perf_counter that stands still until it is moved."""

    now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(meter, "time", clock)
    return clock


def test_mfu_is_the_seconds_at_peak_over_the_seconds_that_passed(clock, monkeypatch):
    """Half of the products in bfloat16 and half in float32, each against the peak of its own type."""
    speeds = {HALF: 4e6, FULL: 1e6}
    monkeypatch.setattr(meter, "matmul_speed", lambda _, kind: speeds[kind])
    found = Meter(Ranks(), CPU, "no")
    with found.count_flops():
        half = torch.ones(10, 20, dtype=HALF) @ torch.ones(20, 30, dtype=HALF)
        (half.float() @ torch.ones(30, 20)).sum()
    assert found.counter.flops == {HALF: 2 * 10 * 20 * 30, FULL: 2 * 10 * 30 * 20}
    found.counted(10)
    found.add(tokens=70, targets=60, places=40)
    clock.now += 0.5
    ideal = 40 / 10 * (12_000 / 4e6 + 12_000 / 1e6)
    assert found.read() == {
        "tokens_per_s": 140.0,
        "items_per_s": 120.0,
        "mfu": pytest.approx(ideal / 0.5, abs=1e-4),
        "peak_gib": pytest.approx(0.5, abs=20),
    }
    clock.now += 0.5
    assert found.read()["mfu"] == 0.0  # nothing was done since


def test_without_a_count_there_is_no_mfu(clock):
    found = Meter(Ranks(), CPU, "no")
    found.counted(7)
    clock.now += 1
    assert found.read()["mfu"] is None


def test_flops_of_a_layer_are_counted_forward_and_backward():
    layer, x = nn.Linear(8, 4), torch.ones(5, 8, requires_grad=True)
    with meter.Products() as products:
        layer(x).sum().backward()
    assert products.flops == {FULL: 3 * 2 * 5 * 8 * 4}


@pytest.mark.parametrize(("card", "peak"), [("NVIDIA H100 80GB HBM3", 495e12), ("a card of tomorrow", 7e12)])
def test_the_peak_is_the_sheets_on_a_known_card_and_measured_on_others(monkeypatch, card, peak):
    monkeypatch.setattr(meter, "matmul_speed", lambda device, kind: 7e12)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: card)
    assert meter.peak(CUDA, FULL, "tf32") == peak
    assert meter.peak(CPU, FULL, "tf32") == 7e12


def test_the_peak_of_memory_is_that_of_each_interval(monkeypatch):
    """What loading, counting and an evaluation took is not in what training took."""
    with Gpu():
        tops = [9 * 2**30]
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: max(tops))
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: tops.clear())
        found = Meter(Ranks(), CUDA, "no")
        tops += [5 * 2**30]  # the counted pass
        found.counted(1)
        tops += [2 * 2**30]
        assert found.read()["peak_gib"] == 2.0
        tops += [3 * 2**30]
        assert found.read()["peak_gib"] == 3.0


def test_a_reading_waits_once_and_a_step_never():
    with Gpu() as gpu:
        found = Meter(Ranks(), CUDA, "no")
        found.add(1, 1, 1)
        assert not gpu.waits
        found.read()
    assert sum(gpu.waits.values()) == 1


def test_a_measured_product_leaves_nothing_behind_and_draws_nothing(monkeypatch):
    before = torch.get_rng_state()
    sizes = []
    mm = torch.mm
    monkeypatch.setattr(meter, "torch", SimpleNamespace(**{**vars(torch), "mm": lambda a, b, out: sizes.append((a.var().item(), out.nbytes)) or mm(a, b, out=out)}))  # fmt: skip
    assert meter.matmul_speed(CPU, FULL) > 1e8
    assert torch.equal(before, torch.get_rng_state())
    assert len(sizes) == 5
    assert all(abs(var - 1) < 0.01 for var, _ in sizes)  # random numbers: constants draw less power, and run faster
    assert 3 * sizes[0][1] < 2**24


def test_a_gpu_multiplies_many_times_for_one_wait(clock, monkeypatch):
    products = []

    def product(a, b, out):
        products.append(a.dtype)
        clock.now += 2  # seconds

    monkeypatch.setattr(torch, "mm", product)
    with Gpu() as gpu:
        assert meter.matmul_speed(CUDA, HALF) == pytest.approx(4096**3)
    assert products == 50 * [HALF]
    assert sum(count for (what, _), count in gpu.waits.items() if what == "synchronize") == 5
    assert not gpu.faults
