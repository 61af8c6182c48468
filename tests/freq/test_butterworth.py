"""The Butterworth filter against scipy and dense transforms; what it may not depend on."""

import numpy as np
import pytest
import scipy.fft
import scipy.signal
import torch
from pretended import Gpu
from torch.testing import assert_close

from distrec.freq import butterworth
from distrec.freq.butterworth import Streamed, gain, impulse, matrices

MODES = ["reflect", "circular", "paper", "causal"]


def alone(n):
    return torch.ones(1, n, dtype=torch.long)


def matrix(n, cutoff=0.3, order=2, boundary="reflect"):
    return matrices(alone(n), cutoff, order, boundary)[0]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_its_gain_is_scipys_butterworth(order):
    f = torch.linspace(0, 1, 101)
    _, wanted = scipy.signal.freqs(*scipy.signal.butter(order, 0.3, analog=True), worN=f.numpy())
    assert_close(gain(f, torch.tensor(0.3), order), torch.from_numpy(np.abs(wanted)).float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("cutoff", [0.1, 0.3, 1.0])
def test_its_gain_is_one_at_rest_minus_3_db_at_the_cutoff_and_falls(cutoff):
    f = torch.linspace(0, 1, 201, dtype=torch.float64)
    found = gain(f, torch.tensor(cutoff, dtype=torch.float64), 2)
    assert float(found[0]) == 1
    assert float(gain(torch.tensor(cutoff), torch.tensor(cutoff), 2)) == pytest.approx(0.5**0.5, abs=1e-6)
    assert bool((found.diff() < 0).all())


@pytest.mark.parametrize("n", [1, 2, 3, 20, 21, 100])
def test_circular_is_the_dense_dft(n):
    x = np.random.default_rng(n).normal(size=(n, 4))
    f = torch.from_numpy(np.arange(n // 2 + 1) * 2 / n)
    response = gain(f, torch.tensor(0.3, dtype=torch.float64), 2).numpy()
    wanted = np.fft.irfft(response[:, None] * np.fft.rfft(x, axis=0), n=n, axis=0)
    assert_close(matrix(n, boundary="circular") @ torch.from_numpy(x).float(), torch.from_numpy(wanted).float(), atol=1e-5, rtol=1e-5)  # fmt: skip


@pytest.mark.parametrize("n", [1, 2, 3, 20, 21, 100])
def test_reflect_is_the_dct_and_the_dft_of_the_mirrored_sequence(n):
    x = np.random.default_rng(n).normal(size=(n, 4))
    response = gain(torch.from_numpy(np.arange(n) / n), torch.tensor(0.3, dtype=torch.float64), 2).numpy()
    wanted = scipy.fft.idct(response[:, None] * scipy.fft.dct(x, axis=0, norm="ortho"), axis=0, norm="ortho")
    found = matrix(n) @ torch.from_numpy(x).float()
    assert_close(found, torch.from_numpy(wanted).float(), atol=1e-5, rtol=1e-5)
    mirrored = torch.from_numpy(np.r_[x, x[::-1]]).float()
    assert_close(found, (matrix(2 * n, boundary="circular") @ mirrored)[:n], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 17, 18, 19, 100])
def test_paper_is_the_published_filter(n):
    x = np.random.default_rng(n).normal(size=(n, 4))
    bins = n // 2 + 1
    if bins == 1:
        response = np.ones(1)
    else:
        edge = int(bins * 0.1) / (bins - 1)
        f = np.arange(bins) / (bins - 1)
        response = 1 / np.sqrt(1 + (f / edge) ** 4) if edge else (f == 0).astype(float)
    wanted = np.fft.irfft(response[:, None] * np.fft.rfft(x, axis=0, norm="ortho"), n=n, axis=0, norm="ortho")
    found = matrix(n, 0.1, 2, "paper") @ torch.from_numpy(x).float()
    assert_close(found, torch.from_numpy(wanted).float(), atol=1e-5, rtol=1e-5)


def test_paper_takes_a_cutoff_below_a_tenth_for_a_tenth():
    assert torch.equal(matrix(60, 0.04, 2, "paper"), matrix(60, 0.1, 2, "paper"))
    assert not torch.equal(matrix(60, 0.2, 2, "paper"), matrix(60, 0.1, 2, "paper"))


def test_causal_is_the_response_of_a_long_circle_cut_in_half_and_streams():
    kernel = impulse(50, torch.tensor(0.3), 2)
    assert_close(kernel, matrix(2001, boundary="circular")[0, :50], atol=1e-4, rtol=1e-4)
    x = torch.randn(3, 50, 4)
    filtered = matrix(50, boundary="causal") @ x
    kernel = kernel.double().numpy()
    for channel in range(4):
        wanted = scipy.signal.lfilter(kernel, 1, x[0, :, channel].numpy()) / np.cumsum(kernel)
        assert_close(filtered[0, :, channel], torch.from_numpy(wanted).float(), atol=1e-5, rtol=1e-5)
    stream = Streamed(0.3, 2)
    assert_close(torch.stack([stream.step(x[:, t]) for t in range(50)], 1), filtered, atol=1e-5, rtol=1e-5)
    assert float(matrix(50, boundary="causal").triu(1).abs().max()) == 0


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("cutoff", [0.02, 0.1, 0.5, 1.0])
def test_no_row_of_the_causal_filter_has_a_sum_near_zero(cutoff, order):
    assert float(impulse(512, torch.tensor(cutoff), order).cumsum(0).min()) > 0.4 * cutoff
    assert float(matrix(512, cutoff, order, "causal").abs().sum(1).max()) < 3


@pytest.mark.parametrize("boundary", MODES)
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_what_is_constant_stays_and_one_place_is_left_alone(boundary, n):
    assert_close(matrix(n, 0.1, 2, boundary).sum(1), torch.ones(n))
    assert_close(matrix(1, 0.1, 2, boundary), torch.ones(1, 1))


@pytest.mark.parametrize("boundary", ["reflect", "circular"])
def test_a_wide_filter_is_nearly_the_identity(boundary):
    assert_close(matrix(30, 1.0, 40, boundary)[:29, :29], torch.eye(30)[:29, :29], atol=0.05, rtol=0)


def test_short_sequences_keep_their_order_unless_as_published():
    assert float(matrix(6, 0.1).std(0).max()) > 1e-3
    assert float(matrix(6, 0.1, 2, "paper").std(0).max()) < 1e-6  # every place the mean: METHODS 1.4


def test_the_first_item_hardly_reaches_the_last_output_but_in_a_circle():
    reflected, ring = matrix(20), matrix(20, boundary="circular")
    assert abs(float(reflected[-1, 0])) < 0.05 * float(reflected[-1, -2])
    assert_close(ring[-1, 0], ring[-1, -2])


@pytest.mark.parametrize("boundary", MODES)
def test_padding_packing_and_company_change_nothing(boundary):
    x = torch.randn(30, 3)
    segment = torch.tensor([[0] * 4 + [1] * 9 + [2] * 17, [3] * 30, [5] * 12 + [0] * 18])
    found = matrices(segment, 0.2, 2, boundary) @ x
    for row, part in ((0, slice(4, 13)), (0, slice(13, 30)), (1, slice(0, 30)), (2, slice(0, 12))):
        n = part.stop - part.start
        assert_close(found[row, part], matrix(n, 0.2, 2, boundary) @ x[part], atol=1e-5, rtol=1e-5)
    assert torch.equal(found[0, :4], x[:4])
    assert torch.equal(found[2, 12:], x[12:])


@pytest.mark.parametrize("boundary", ["reflect", "circular", "causal"])
def test_the_cutoff_can_be_learnt(boundary):
    x, target = torch.randn(1, 24, 5), matrices(alone(24), 0.6, 2, boundary)
    cutoff = torch.tensor(0.2, requires_grad=True)
    optimizer = torch.optim.Adam([cutoff], 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        ((matrices(alone(24), cutoff, 2, boundary) - target) @ x).square().mean().backward()
        optimizer.step()
    assert cutoff.item() == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize(("cutoff", "order", "message"), [(0.0, 2, "cutoff 0:"), (1.5, 2, "cutoff 1.5:"), (-0.1, 2, "cutoff -0.1:"), (0.3, 0, "order 0:"), (float("nan"), 2, "cutoff nan:")])  # fmt: skip
@pytest.mark.parametrize("boundary", MODES)
def test_what_is_no_filter(cutoff, order, message, boundary):
    with pytest.raises(ValueError, match=message):
        matrices(alone(4), cutoff, order, boundary)


SEGMENT = torch.tensor([[0] * 4 + [1] * 9 + [2] * 17, [3] * 30, [5] * 12 + [0] * 18, [0] * 30])


@pytest.mark.parametrize("boundary", MODES)
def test_autocast_changes_no_bit_of_a_filter_nor_of_its_gradient(boundary):
    def made():
        cutoff = torch.tensor(0.2, requires_grad=True)
        found = matrices(SEGMENT, cutoff, 2, boundary)
        if boundary != "paper":  # whose cutoff is rounded to its grid
            (found.square().sum() * 3).backward()
        stream = Streamed(0.2, 2, 0.7)
        return found.detach(), cutoff.grad, torch.stack([stream.step(x) for x in torch.ones(5, 2, 3)])

    plain = made()
    with torch.autocast("cpu", torch.bfloat16):
        for found, wanted in zip(made(), plain, strict=True):
            assert found is wanted or (found.dtype == torch.float32 and torch.equal(found, wanted))
    assert (boundary == "paper") == (plain[1] is None)


@pytest.mark.parametrize("boundary", MODES)
def test_on_a_gpu_it_is_the_same_and_the_host_never_waits(boundary):
    segments = [SEGMENT, SEGMENT[:1, 4:14], SEGMENT[3:], alone(1)]
    for segment in segments:
        wanted = matrices(segment, 0.2, 2, boundary)
        with Gpu() as gpu:
            there, learnt = segment.to("cuda"), torch.tensor(0.2).to("cuda").requires_grad_()
            gpu.waits.clear()
            found, same = matrices(there, 0.2, 2, boundary), matrices(there, learnt, 2, boundary)
            stream = Streamed(0.2, 2)
            stream.step(torch.ones(2, 3, device="cuda"))
            assert not gpu.waits
            assert not gpu.faults
            assert found.is_cuda
            assert_close(found.cpu(), wanted, atol=1e-6, rtol=1e-6)
            assert_close(same.detach().cpu(), wanted, atol=1e-6, rtol=1e-6)


def test_a_long_window_makes_the_responses_of_its_own_lengths_alone(monkeypatch):
    """Those of all lengths grow with the third power of the window."""
    made = []
    real = butterworth._responses
    monkeypatch.setattr(butterworth, "_responses", lambda n, *rest: (made.append(len(n)), real(n, *rest))[1])
    with Gpu():
        for n in (butterworth._EVERY, butterworth._EVERY + 1):
            matrices(alone(n).to("cuda"), 0.2, 2, "circular")
    matrices(alone(9), 0.2, 2, "circular")
    assert made == [butterworth._EVERY + 1, 1, 1]
