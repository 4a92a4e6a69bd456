"""The alternation between Q and L·R: what it promises from iteration to iteration, over ranks and factor bits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from compress_core import CompressionConfig, compress_matrix, sweep_matrix
from compress_core.codebooks import TRELLIS_ROWS, codebook_for
from compress_core.context import prepare_input
from compress_core.error_metrics import calibration_weighted_error
from compress_core.lowrank import (
    FactorCode,
    best_low_rank,
    factor_codebook,
    factor_noise,
    quantize_factors,
)

CPU = torch.device("cpu")
BOOKS = ("scalar", "e8", "trellis")


def _singular(h: Tensor) -> Tensor:
    alive = (torch.arange(h.shape[0]) % 4 > 0).float()
    return h * alive * alive[:, None]


HESSIANS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "outliers": lambda h: h,
    "none": lambda _: None,
    "singular": _singular,
    "rank 5": lambda h: h[:, :5] @ torch.linalg.inv(h[:5, :5]) @ h[:5],
}


def error(w: Tensor, h: Tensor | None, config: CompressionConfig) -> float:
    return calibration_weighted_error(w, compress_matrix(w, h, config).dequantize(), h)


# --- iterations


@pytest.mark.parametrize("hessian", HESSIANS)
@pytest.mark.parametrize("codebook", BOOKS)
def test_with_exact_factors_no_iteration_raises_the_error(codebook: str, hessian: str, make_layer) -> None:
    w, h = make_layer(80, 68)
    h = HESSIANS[hessian](h)
    for rank in (3, 24):
        config = CompressionConfig(b_q=2, rank=rank, factor_bits=16, codebook=codebook, states=256)
        errors = [error(w, h, replace(config, iterations=count)) for count in (1, 2, 3)]
        # float16 factors are not quite exact, nor is the error that the alternation sees: H has a little damping there
        floor = 1e-6
        assert all(after <= 1.001 * before + floor for before, after in itertools.pairwise(errors)), (rank, errors)
        assert errors[-1] < 0.99 * errors[0] or errors[0] < floor, (rank, errors)


# --- ranks and factor bits


@pytest.mark.parametrize("hessian", HESSIANS)
@pytest.mark.parametrize("codebook", BOOKS)
def test_no_rank_is_worse_than_rank_0(codebook: str, hessian: str, make_layer) -> None:
    for shape in ((40, 52), (9, 31)):
        w, h = make_layer(*shape)
        h = HESSIANS[hessian](h)
        base = CompressionConfig(b_q=4, codebook=codebook, states=256)
        ranked = [
            replace(base, rank=rank, factor_bits=factor_bits)
            for rank, factor_bits in itertools.product((1, min(shape)), (4, 8, 16, (4, 16), (16, 4)))
        ]
        at_rank_0, *others = (m.calibration_weighted_error for m in sweep_matrix(w, h, [base, *ranked]))
        assert len(others) == 10
        for config, found in zip(ranked, others, strict=True):
            assert found <= 1.0001 * at_rank_0 + 1e-9, (shape, config)


def test_a_matrix_of_low_rank_is_left_to_exact_factors(make_layer) -> None:
    w, h = make_layer(48, 40)
    u, s, v = torch.linalg.svd(w)
    low = (u[:, :4] * s[:4]) @ v[:4]
    for codebook in BOOKS:
        config = CompressionConfig(b_q=2, rank=4, factor_bits=16, codebook=codebook, states=256)
        assert error(low, h, config) < 1e-5
        assert error(low, h, replace(config, rank=0)) > 1e-3


# --- how much of W the factors carry


def share_in_q(w: Tensor, rank: int, config: CompressionConfig) -> float:
    """Energy of Q in the leading ``rank`` right singular directions of W, relative to that of W (H the identity)."""
    v_Ir = torch.linalg.svd(w).Vh[:rank].T
    decoded = compress_matrix(w, None, config).decode()
    q = decoded.rotation.unrotate(decoded.q.values() * decoded.scale_O[:, None])
    return float((q @ v_Ir).square().sum() / (w @ v_Ir).square().sum())


@pytest.mark.parametrize("codebook", BOOKS)
def test_factors_carry_the_more_the_finer_they_are(codebook: str, make_layer) -> None:
    """From 8 bits on all that W has in their directions; with 4 a part, less of it the finer Q is itself."""
    rank = 4
    w = make_layer(96, 80)[0] + 0.2 * torch.outer(torch.ones(96), torch.linspace(-1, 1, 80))
    left_over = {}
    for bits in (2, 4):
        config = CompressionConfig(b_q=bits, rank=rank, codebook=codebook, states=256)
        for factor_bits in (4, 8, 16):
            left_over[bits, factor_bits] = share_in_q(w, rank, replace(config, factor_bits=factor_bits))
    for bits in (2, 4):  # what is left is the noise of Q
        assert left_over[bits, 8] < 0.003
        assert left_over[bits, 16] < 0.003
    assert 0.2 < left_over[4, 4] < 0.8
    assert left_over[4, 16] < left_over[2, 4] < 0.2


@pytest.mark.parametrize(("codebook", "bits"), [(c, b) for c in ("scalar", "trellis") for b in (4, 8)])
@pytest.mark.parametrize("rank", [4, 24])
def test_factor_noise_is_what_quantising_adds(codebook: str, bits: int, rank: int) -> None:
    g = torch.Generator().manual_seed(rank)
    rows, width = 192, 160
    a = torch.randn(rows, rank, generator=g) @ torch.randn(rank, width, generator=g)
    code = FactorCode(bits, bits, codebook, 256)
    shared = prepare_input(None, width, 0, CPU)
    low = best_low_rank(a, shared.root, shared.start(rank), rank, rounds=4)
    factors = quantize_factors(a, shared.root, shared.feedback, low, torch.ones(rows), code)
    added = float(factors.subtracted_from(a).square().sum())
    assert 0.5 < added / float(a.square().sum()) / factor_noise(code, rows, rank) < 2


def test_finer_factors_are_less_noisy() -> None:
    def noise(bits_l: int, bits_r: int, codebook: str = "trellis", rows: int = 64) -> float:
        return factor_noise(FactorCode(bits_l, bits_r, codebook, 256), rows, 32)

    assert noise(4, 4) > noise(4, 8) > noise(8, 8) > noise(16, 16) > 0
    assert noise(4, 16) > noise(16, 4)  # L is fitted to the rounded R, so that its own noise stays
    assert noise(16, 16) < 1e-5
    assert noise(4, 4, "scalar") > noise(4, 4)
    assert noise(4, 4, rows=TRELLIS_ROWS - 1) > noise(4, 4, rows=TRELLIS_ROWS)


# --- few rows


def test_few_rows_get_the_scalar_codebook_instead_of_the_trellis(make_layer) -> None:
    for rows in (1, TRELLIS_ROWS - 1, TRELLIS_ROWS):
        few = rows < TRELLIS_ROWS
        assert codebook_for(rows, "trellis", 3, CPU, 256).name == ("scalar" if few else "trellis")
        assert codebook_for(rows, "e8", 3, CPU).name == "e8"
        for bits in (4, 8, 16):
            name = factor_codebook(rows, bits, "trellis", 256, CPU).name if bits < 16 else "scalar"
            assert name == ("trellis" if bits == 4 and not few else "scalar")
        w, h = make_layer(rows, 30)
        rank = min(rows, 3)
        trellis, scalar = (
            compress_matrix(w, h, CompressionConfig(b_q=3, rank=rank, codebook=book, states=256))
            for book in ("trellis", "scalar")
        )
        assert trellis.nbytes == scalar.nbytes
        assert torch.equal(trellis.blob(), scalar.blob()) == few
        assert torch.equal(trellis.dequantize(), scalar.dequantize()) == few
