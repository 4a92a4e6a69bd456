import pytest
import torch

from compress_core.codebooks import get_codebook
from compress_core.errors import CalibrationError
from compress_core.ldlq import Rounded, ldlq, make_feedback

CPU = torch.device("cpu")


def posdef(n: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(3 * n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x * torch.linspace(0.2, 3, n, dtype=torch.float64) + x[:, :1]
    return x.T @ x / n + 0.05 * torch.eye(n, dtype=torch.float64)


def weighted_error(w: torch.Tensor, rounded: Rounded, h: torch.Tensor) -> float:
    d = (w - rounded.value_OI).double()
    return float(((d @ h) * d).sum())


@pytest.mark.parametrize(("block", "width"), [(1, 20), (2, 531), (8, 24), (8, 29), (8, 5), (8, 1030)])
def test_feedback_factorises_h(block: int, width: int) -> None:
    """H = Ũ D Ũᵀ with Ũ unit upper triangular in blocks and D block diagonal."""
    h = posdef(width)
    unit_t = make_feedback(h, block).unit_t_II.double()
    full = width - width % block
    starts = [*range(0, full, block), *range(full, width)]
    unit = torch.eye(width, dtype=torch.float64)
    for start, stop in zip(starts, [*starts[1:], width], strict=True):
        unit[:start, start:stop] = unit_t[start:stop, :start].T
    inverse = torch.linalg.inv(unit)
    diagonal = inverse @ h @ inverse.T
    outside = torch.ones_like(h, dtype=torch.bool)
    for start, stop in zip(starts, [*starts[1:], width], strict=True):
        outside[start:stop, start:stop] = False
    assert diagonal[outside].abs().max() < 1e-4 * h.diagonal().mean()


def test_an_indefinite_hessian_is_refused() -> None:
    h = posdef(24)
    h[3, 3] = -1
    with pytest.raises(CalibrationError, match="positive definite"):
        make_feedback(h, 8)


@pytest.mark.parametrize("width", [24, 70, 133])
@pytest.mark.parametrize("name", ["scalar", "e8"])
def test_panels_equal_the_plain_recursion(name: str, width: int) -> None:
    """Far updates gathered into panels give what the definition gives, column block by column block."""
    book, tail = get_codebook(name, 3, CPU), get_codebook("scalar", 3, CPU)
    w = torch.randn(6, width, generator=torch.Generator().manual_seed(2))
    f = make_feedback(posdef(width), book.block)
    scale = torch.linspace(0.8, 1.2, 6)
    got = ldlq(w, f, book, tail, scale)
    unit = f.unit_t_II.T
    full = width - width % book.block
    error = torch.zeros_like(w)
    lo = 0
    disagreements = 0
    while lo < width:
        b, hi = (book, lo + book.block) if lo < full else (tail, lo + 1)
        target = w[:, lo:hi] + error[:, :lo] @ unit[:lo, lo:hi]
        q = b.nearest(target / scale[:, None]).sum(0) * scale[:, None]
        # a target on a cell's border may round either way: follow what was chosen
        disagreements += int((~torch.isclose(q, got.value_OI[:, lo:hi], atol=1e-4)).any(1).sum())
        error[:, lo:hi] = w[:, lo:hi] - got.value_OI[:, lo:hi]
        lo = hi
    assert disagreements <= 1


@pytest.mark.parametrize("name", ["scalar", "e8"])
def test_feedback_lowers_the_weighted_error(name: str) -> None:
    book, tail = get_codebook(name, 2, CPU), get_codebook("scalar", 2, CPU)
    w = torch.randn(40, 68, generator=torch.Generator().manual_seed(3))
    h = posdef(68)
    ones = torch.ones(40)
    with_feedback = make_feedback(h, book.block)
    without = make_feedback(torch.eye(68, dtype=torch.float64), book.block)
    good, plain = (weighted_error(w, ldlq(w, f, book, tail, ones), h) for f in (with_feedback, without))
    assert good < 0.8 * plain


def test_a_zero_scale_gives_a_zero_row() -> None:
    book = get_codebook("e8", 2, CPU)
    w = torch.randn(3, 16, generator=torch.Generator().manual_seed(3))
    out = ldlq(w, make_feedback(posdef(16), 8), book, book, torch.tensor([1.0, 0.0, 1.0]))
    assert (out.value_OI[1] == 0).all()
    assert torch.isfinite(out.value_OI).all()
