"""H = Rᵀ R in the lower triangle, whatever the number of blocks; the upper one is left alone."""

import pytest
import torch

from compress_core import cholesky
from compress_core.cholesky import lower_factor_


@pytest.fixture(params=[512, 7, 1])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cholesky, "_BLOCK", request.param)


def posdef(width: int, dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(2 * width + 3, width, generator=torch.Generator().manual_seed(width), dtype=torch.float64)
    return (x.T @ x / width).to(dtype)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("width", [1, 2, 7, 8, 30])
def test_factor(width: int, dtype: torch.dtype, tolerance: float) -> None:
    h = posdef(width, dtype)
    square = h.tril() + torch.full_like(h, torch.nan).triu(1)  # reading it would show
    assert lower_factor_(square)
    assert square.triu(1)[torch.ones_like(h).triu(1).bool()].isnan().all()
    root = square.nan_to_num().tril()
    assert torch.allclose(root.T @ root, h, atol=tolerance * float(h.diagonal().mean()))
    assert (root.diagonal() > 0).all()


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("at", [0, 9, 19])
def test_an_indefinite_matrix_has_none(at: int) -> None:
    h = posdef(20, torch.float64)
    h[at, at] -= 20
    assert not lower_factor_(h)


def test_more_than_one_block_of_the_usual_size() -> None:
    h = posdef(1100, torch.float64)
    square = h.clone()
    assert lower_factor_(square)
    assert torch.equal(square.triu(1), h.triu(1))
    assert torch.allclose(square.tril().T @ square.tril(), h, atol=1e-11)
