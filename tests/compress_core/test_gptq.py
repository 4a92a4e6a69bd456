"""GPTQ with a scale a row: the paper's algorithm, each row no worse than plain GPTQ, stored as round-to-nearest."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from compress_core import CompressionConfig, compress_matrix, rooted_hessian, sweep_matrix
from compress_core import gptq as module
from compress_core.codebooks.rtn import rtn_codes, rtn_scales, rtn_values
from compress_core.config import CODEBOOK_BITS
from compress_core.errors import CalibrationError, ConfigError, NonFiniteValues
from compress_core.gptq import gptq, nearest_level, round_in_order, unit_feedback


def layer(out_features: int, in_features: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight with unequal rows and a Hessian whose input channels differ and correlate."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(out_features, in_features, generator=g) * torch.exp(0.5 * torch.randn(out_features, 1, generator=g))
    x = torch.randn(3 * in_features, in_features, generator=g) * torch.exp(torch.randn(in_features, generator=g))
    x = x + 0.3 * x.roll(1, 1) + 0.2
    return w, x.T @ x / x.shape[0]


def row_errors(w: Tensor, value: Tensor, h: Tensor) -> Tensor:
    d = (w - value).double()
    return ((d @ h.double()) * d).sum(1)


def normalised(h: Tensor) -> Tensor:
    return h.double() / h.double().diagonal().mean()


def textbook(w: Tensor, h64: Tensor, bits: int, step: Tensor) -> Tensor:
    """Algorithm 1 of arXiv 2210.17323, one column at a time, by the inverse of what remains of H."""
    w, h = w.double().clone(), h64 + 0.01 * torch.eye(h64.shape[0], dtype=torch.float64)
    out = torch.empty_like(w)
    for k in range(w.shape[1]):
        inverse = torch.linalg.inv(h[k:, k:])
        out[:, k] = nearest_level(step, bits)(w[:, k].float()).double()
        w[:, k:] -= ((w[:, k] - out[:, k]) / inverse[0, 0])[:, None] * inverse[0]
    return out.float()


@pytest.mark.parametrize("bits", [2, 4])
def test_rounding_in_order_is_the_papers_algorithm(bits: int) -> None:
    w, h = layer(16, 80)  # wider than a panel
    step = rtn_scales(w, bits)
    ours = round_in_order(w, unit_feedback(normalised(h)), nearest_level(step, bits))
    expected = textbook(w, normalised(h), bits, step)
    assert (ours != expected).float().mean() < 0.01  # float32 beside float64: a target next to an edge may turn
    torch.testing.assert_close(row_errors(w, ours, h).sum(), row_errors(w, expected, h).sum(), rtol=0.01, atol=0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_each_row_is_at_least_as_good_as_plain_gptq_in_either_order(bits: int) -> None:
    w, h = layer(24, 40)
    value = rtn_values(*gptq(w, h, bits), bits)
    step = rtn_scales(w, bits)
    for order in (torch.arange(40), h.diagonal().argsort(descending=True, stable=True)):
        plain = torch.empty_like(w)
        unit = unit_feedback(normalised(h)[order][:, order])
        plain[:, order] = round_in_order(w[:, order], unit, nearest_level(step, bits))
        assert (row_errors(w, value, h) <= row_errors(w, plain, h) * (1 + 1e-4)).all()
    assert row_errors(w, value, h).sum() < 0.9 * row_errors(w, plain, h).sum()


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 5])
def test_without_a_hessian_no_row_is_worse_than_round_to_nearest(bits: int, zero: bool) -> None:
    w, h = layer(24, 40)
    value = rtn_values(*gptq(w, 0 * h if zero else None, bits), bits)
    step = rtn_scales(w, bits)
    plain = rtn_values(rtn_codes(w, step, bits), step, bits)
    assert (row_errors(w, value, torch.eye(40)) <= row_errors(w, plain, torch.eye(40)) * (1 + 1e-5)).all()
    assert row_errors(w, value, torch.eye(40)).sum() < row_errors(w, plain, torch.eye(40)).sum()


def test_an_outlier_is_clipped_where_that_is_better() -> None:
    w, _ = layer(4, 64)
    w[1, 7] = 8 * w[1].abs().max()
    _, step = gptq(w, None, 2)
    assert step[1] < 0.75 * rtn_scales(w, 2)[1]


@pytest.mark.parametrize("bits", CODEBOOK_BITS["gptq"])
def test_it_is_stored_as_round_to_nearest(bits: int) -> None:
    w, h = layer(9, 21)
    found = compress_matrix(w, h, CompressionConfig(b_q=bits, codebook="gptq"))
    plain = compress_matrix(w, h, CompressionConfig(b_q=bits, codebook="rtn"))
    assert found.nbytes == plain.nbytes
    codes, step = gptq(w, h, bits)
    assert torch.equal(found.dequantize(), rtn_values(codes, step, bits))


def test_more_bits_mean_less_error() -> None:
    w, h = layer(24, 40)
    configs = [CompressionConfig(b_q=bits, codebook="gptq") for bits in CODEBOOK_BITS["gptq"]]
    errors = [found.calibration_weighted_error for found in sweep_matrix(w, h, configs)]
    assert all(later < 0.5 * sooner for sooner, later in itertools.pairwise(errors))


def test_many_rows_are_rounded_as_few(monkeypatch: pytest.MonkeyPatch) -> None:
    w, h = layer(10, 24)
    whole = rtn_values(*gptq(w, h, 3), 3)
    monkeypatch.setattr(module, "_ROWS", 3)
    parts = rtn_values(*gptq(w, h, 3), 3)
    torch.testing.assert_close(row_errors(w, parts, h), row_errors(w, whole, h), rtol=0.02, atol=0)


def test_a_wide_hessian_is_factorised_in_place_to_the_same_end(monkeypatch: pytest.MonkeyPatch) -> None:
    w, h = layer(10, 24)
    exact = rtn_values(*gptq(w, h, 3), 3)
    for name in (module, rooted_hessian):
        monkeypatch.setattr(name, "EXACT_WIDTH", 16)
    monkeypatch.setattr(module, "_WIDE_ENTRIES", 72)  # 3 rows
    wide = rtn_values(*gptq(w, h, 3), 3)
    assert not torch.equal(wide, 0 * wide)
    torch.testing.assert_close(row_errors(w, wide, h), row_errors(w, exact, h), rtol=0.02, atol=0)
    with pytest.raises(CalibrationError, match="not positive semidefinite"):
        gptq(w, torch.diag(torch.tensor([1.0, -0.9]).repeat(12)), 3)
    assert torch.equal(rtn_values(*gptq(w, None, 3), 3), rtn_values(*gptq(w, 0 * h, 3), 3))


def test_it_takes_what_half_precision_leaves_of_a_singular_hessian() -> None:
    w, _ = layer(12, 36)
    x = torch.randn(8, 36, generator=torch.Generator().manual_seed(1))
    rounded = (x.T @ x).to(torch.bfloat16)
    assert float(torch.linalg.eigvalsh(rounded.float())[0]) < 0
    value = rtn_values(*gptq(w, rounded, 3), 3)
    assert row_errors(w, value, x.T @ x).sum() < 0.1 * row_errors(w, 0 * w, x.T @ x).sum()


def test_what_is_no_second_moment_is_refused() -> None:
    w, h = layer(8, 16)
    config = CompressionConfig(b_q=3, codebook="gptq")
    with pytest.raises(CalibrationError, match="not positive semidefinite"):
        gptq(w, torch.diag(torch.tensor([1.0, -0.9]).repeat(8)), 3)
    with pytest.raises(CalibrationError, match="not positive semidefinite"):
        compress_matrix(w, -h, config)
    with pytest.raises(NonFiniteValues, match="Hessian has NaN or infinite"):
        compress_matrix(w, h * torch.nan, config)
    with pytest.raises(ValueError, match="needs a Hessian of that size"):
        compress_matrix(w, h[:8, :8], config)


def test_it_is_a_baseline() -> None:
    with pytest.raises(ConfigError, match="'gptq' is a baseline: it takes rank 0 only"):
        CompressionConfig(b_q=2, rank=1, codebook="gptq")
    with pytest.raises(ConfigError, match="has no b_q = 9"):
        CompressionConfig(b_q=9, codebook="gptq")
    hashes = {
        CompressionConfig(b_q=2, codebook="gptq", seed=s, iterations=i).config_hash for s in (0, 1) for i in (1, 5)
    }
    assert len(hashes) == 1
    assert hashes != {CompressionConfig(b_q=2, codebook="rtn").config_hash}
