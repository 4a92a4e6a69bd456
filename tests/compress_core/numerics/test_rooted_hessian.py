"""What is read out of the shared square is what H and S apart would give."""

import pytest
import torch

from compress_core import rooted_hessian
from compress_core.rooted_hessian import RootedHessian

WIDTH = 23
EXTRA = torch.tensor(0.01)


def gaussian(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture(params=[512, 5], ids=["one panel", "panels"], autouse=True)
def panel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooted_hessian, "_PANEL", request.param)


@pytest.fixture
def h_II() -> torch.Tensor:
    x = gaussian(60, WIDTH)
    return x.T @ x / 60


@pytest.fixture(params=[4096, 0], ids=["float64", "float32"])
def root(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, h_II: torch.Tensor) -> RootedHessian:
    monkeypatch.setattr(rooted_hessian, "EXACT_WIDTH", request.param)
    made = RootedHessian(h_II.clone(), h_II.diagonal().clone())
    assert made.factorise_(torch.tensor(3.0))  # of which the second leaves no trace
    assert made.factorise_(EXTRA)
    return made


def s_of(root: RootedHessian) -> torch.Tensor:
    return root.square_II.tril().T


def test_root(root: RootedHessian, h_II: torch.Tensor) -> None:
    s_II = s_of(root)
    assert torch.allclose(s_II @ s_II.T, h_II + EXTRA * torch.eye(WIDTH), atol=1e-5)


def test_hessian(root: RootedHessian, h_II: torch.Tensor) -> None:
    assert torch.equal(root.lower_hessian().tril(), h_II.tril().to(root.lower_hessian().dtype))
    assert float(root.mean) == pytest.approx(float(h_II.diagonal().mean()))
    for at in (slice(0, 4), slice(6, 13), slice(20, WIDTH)):
        assert torch.equal(root.corner(at), h_II[at, at])
        x_IX = gaussian(WIDTH, 3)
        without_IX = x_IX.clone()
        without_IX[at] = 0
        assert torch.allclose(root.rows_beside(at, x_IX), h_II[at] @ without_IX, atol=1e-5)


def test_products_with_the_root(root: RootedHessian) -> None:
    s_II, x_IX = s_of(root), gaussian(WIDTH, 4)
    for got, expected in (
        (root.root_times(x_IX), s_II @ x_IX),
        (root.root_transposed_times(x_IX), s_II.T @ x_IX),
        (root.times_root(x_IX.T), x_IX.T @ s_II),
        (s_II.T @ root.solve_root(x_IX), x_IX),
        (root.energies(x_IX), (s_II.T @ x_IX).square().sum(0)),
    ):
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_an_indefinite_hessian_has_no_root_but_keeps_itself(h_II: torch.Tensor) -> None:
    h_II[4, 4] = -1
    root = RootedHessian(h_II.clone(), h_II.diagonal().clone())
    assert not root.factorise_(EXTRA)
    assert torch.equal(root.corner(slice(0, WIDTH)), h_II)
