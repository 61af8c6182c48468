"""Rows that lie in clusters, for the quantisers' tests."""

import torch

from distrec.codes.rows import Rows


def cloud(n=600, d=6, k=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(k, d, generator=generator)
    mixing = torch.randn(k, d, d, generator=generator) / 2
    label = torch.randint(k, (n,), generator=generator)
    noise = torch.randn(n, d, generator=generator)
    return (centres[label] + (mixing[label] @ noise[:, :, None])[:, :, 0]).to(dtype)


def whole(x, **more):
    return Rows.whole(x, dtype=x.dtype, **more)
