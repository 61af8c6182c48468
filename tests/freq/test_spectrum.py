"""Ranks against matrices whose singular values are known, and numpy's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distrec.freq.spectrum import counted, ranks


def test_ranks_of_a_matrix_of_known_singular_values():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64))[0] for _ in range(2))
    values = torch.tensor([1.0] * 5 + [1e-3] * 4 + [1e-9] * 11, dtype=torch.float64)
    found = ranks(left * values @ right)
    assert (found["rank@0.01"], found["rank@1e-06"]) == (5, 9)
    assert found["effective_rank"] == pytest.approx(5, abs=0.1)
    assert found["rank@1e-06"] == np.linalg.matrix_rank((left * values @ right).numpy(), tol=1e-6)
    assert ranks(torch.eye(41))["effective_rank"] == pytest.approx(41)
    three_to_one = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert ranks(torch.diag(torch.tensor([3.0, 1.0])))["effective_rank"] == pytest.approx(np.exp(three_to_one))


def test_the_rank_of_softplus_of_a_matrix_is_a_matter_of_tolerance():
    """METHODS 2.3: rank 41 at 1e-6, about 19 (variance .01) or 1 (standard deviation .01) at 1e-2."""
    drawn = torch.randn(41, 41, generator=torch.Generator().manual_seed(0))
    wide, narrow = ranks(F.softplus(0.1 * drawn)), ranks(F.softplus(0.01 * drawn))
    assert wide["rank@1e-06"] == narrow["rank@1e-06"] == 41
    assert 12 <= wide["rank@0.01"] <= 26
    assert narrow["rank@0.01"] == 1
    assert narrow["effective_rank"] < wide["effective_rank"] < 41


def test_a_matrix_of_zeros_has_rank_0_and_matrices_beside_each_other_are_counted_each_by_its_own_sum():
    assert {value for key, value in ranks(torch.zeros(4, 3)).items() if key.startswith("rank@")} == {0}
    drawn = (
        torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1e3, 0.0])[:, None, None]
    )
    together = counted(torch.linalg.svdvals(drawn.double()))
    for i, matrix in enumerate(drawn):
        assert {key: float(values[i]) for key, values in together.items()} == pytest.approx(ranks(matrix))
