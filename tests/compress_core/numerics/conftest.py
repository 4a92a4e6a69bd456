"""Small matrices with the structure of trained weights, and Hessians with outliers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

MakeLayer = Callable[..., tuple[Tensor, Tensor]]


@pytest.fixture(scope="session")
def make_layer() -> MakeLayer:
    """(out, in, seed) -> weight with rows of unequal norm and a low-rank part, Hessian with outlier channels."""

    def make(out_features: int, in_features: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(1000 * seed + 7)
        rows = torch.exp(0.5 * torch.randn(out_features, 1, generator=g))
        w = torch.randn(out_features, in_features, generator=g) * rows
        u, v = torch.randn(out_features, 2, generator=g), torch.randn(2, in_features, generator=g)
        w = 0.02 * (w + 0.7 * u @ v)
        x = torch.randn(4 * in_features + 8, in_features, generator=g)
        x = x @ (torch.eye(in_features) + 0.3 * torch.randn(in_features, in_features, generator=g) / in_features**0.5)
        channels = torch.exp(0.5 * torch.randn(in_features, generator=g))
        channels[:1] *= 10
        x = x * channels + 0.2
        return w, x.T @ x / x.shape[0]

    return make
