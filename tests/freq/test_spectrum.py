"""Ranks against matrices whose singular values are known, and numpy's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distrec.freq.spectrum import band_energy, ranks


def test_ranks_of_a_matrix_of_known_singular_values():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64))[0] for _ in range(2))
    values = torch.tensor([1.0] * 5 + [1e-3] * 4 + [1e-9] * 11, dtype=torch.float64)
    found = ranks(left * values @ right)
    assert (found["rank@0.01"], found["rank@1e-06"]) == (5, 9)
    assert found["effective_rank"] == pytest.approx(5, abs=0.1)
    assert found["rank@1e-06"] == np.linalg.matrix_rank((left * values @ right).numpy(), tol=1e-6)
    assert ranks(torch.eye(41))["effective_rank"] == pytest.approx(41)


def test_the_rank_of_softplus_of_a_matrix_is_a_matter_of_tolerance():
    """METHODS 2.3: rank 41 at 1e-6, about 19 (variance .01) or 1 (standard deviation .01) at 1e-2."""
    drawn = torch.randn(41, 41, generator=torch.Generator().manual_seed(0))
    wide, narrow = ranks(F.softplus(0.1 * drawn)), ranks(F.softplus(0.01 * drawn))
    assert wide["rank@1e-06"] == narrow["rank@1e-06"] == 41
    assert 12 <= wide["rank@0.01"] <= 26
    assert narrow["rank@0.01"] == 1
    assert narrow["effective_rank"] < wide["effective_rank"] < 41


def laplacian_basis(n, seed=0):
    weights = torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = (weights + weights.T).fill_diagonal_(0)
    scale = weights.sum(1).rsqrt()
    return torch.linalg.eigh(torch.eye(n, dtype=torch.float64) - scale[:, None] * weights * scale)[1]


@pytest.mark.parametrize("n", [4, 10, 19, 100])
def test_band_energies_sum_to_one_and_empty_bands_are_told(n):
    found = band_energy(torch.randn(n, 8).double(), laplacian_basis(n), 10)
    assert float(found.share.nansum()) == pytest.approx(1)
    assert float(found.noise.nansum()) == pytest.approx(1)
    assert int(found.share.isnan().sum()) == max(0, 10 - n)
    sizes = (found.noise * n).nan_to_num().round()
    assert float(sizes.max() - sizes.min()) <= 1


def test_white_noise_has_its_baseline_and_a_pure_state_its_band():
    basis, draw = laplacian_basis(40), torch.Generator().manual_seed(0)
    noise = band_energy(torch.randn(40, 20_000, generator=draw).double(), basis, 8)
    torch.testing.assert_close(noise.share, noise.noise, atol=5e-3, rtol=0)
    time = torch.linalg.qr(torch.randn(12, 12, generator=draw).double())[0]
    time[:, 0] = 12**-0.5
    constant = band_energy(torch.ones(12, 3).double(), torch.linalg.qr(time)[0], 4)
    torch.testing.assert_close(constant.share, torch.tensor([1.0, 0, 0, 0], dtype=torch.float64))


def test_one_loud_state_does_not_drown_the_others():
    basis, states = laplacian_basis(30), torch.randn(30, 16).double()
    loud = states.clone()
    loud[0] *= 1e4
    torch.testing.assert_close(band_energy(loud, basis, 5).share, band_energy(states, basis, 5).share)
    with pytest.raises(ValueError, match="0 bands"):
        band_energy(states, basis, 0)
