"""The Gaussian filter's band matrix against a convolution."""

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from distrec.freq.filters import gaussian, smooth


@pytest.mark.parametrize("lopsided", [False, True])
@pytest.mark.parametrize(("length", "taps"), [(80, 7), (5, 15), (1, 7), (20, 1)])
def test_smoothing_is_a_masked_convolution(length, taps, lopsided):
    x = torch.randn(3, length, 4, dtype=torch.float64, requires_grad=True)
    is_valid = torch.rand(3, length) < 0.7
    kernel = gaussian(torch.tensor(2.0, dtype=torch.float64), taps)
    if lopsided:
        kernel = kernel * torch.arange(1, taps + 1)
    weights, padding = kernel.view(1, 1, -1, 1), (taps // 2, 0)
    valid = is_valid[:, None, :, None].double()
    total, count = (F.conv2d(part, weights, padding=padding) for part in (x[:, None] * valid, valid))
    wanted = torch.where(valid > 0, total / count, 0.0)[:, 0]
    assert_close(smooth(x, is_valid, kernel), wanted)
    assert_close(smooth(x, is_valid, kernel, normalised=False), (total * valid)[:, 0])
    smooth(x, is_valid, kernel).sum().backward()
    assert bool(x.grad.isfinite().all())


def test_the_filter_is_the_same_under_autocast_and_blind_to_what_stands_at_pads():
    x, is_valid = torch.randn(2, 30, 4), torch.arange(30).expand(2, -1) >= 9
    kernel = gaussian(torch.tensor(3.0), 7)
    wanted = smooth(x, is_valid, kernel)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(smooth(x, is_valid, kernel), wanted)
    assert torch.equal(smooth(x.masked_fill(~is_valid[..., None], torch.nan), is_valid, kernel), wanted)


@pytest.mark.parametrize("sigma", [0.5, 3.0])
def test_the_literal_kernel_is_the_normal_density_and_the_usual_one_has_1_in_its_middle(sigma):
    t, width = torch.arange(-4, 5, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)
    density = torch.from_numpy(scipy.stats.norm.pdf(t, scale=sigma))
    assert_close(gaussian(width, 9, literal=True), density)
    assert_close(gaussian(width, 9), density / density[4])
