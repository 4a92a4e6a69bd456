"""Inputs that nobody hopes for, on every codebook. Plainer ones are in numerics/test_compress.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from compress_core import CompressedMatrix, CompressionConfig, compress_matrix
from compress_core.config import BASELINE_CODEBOOKS, CODEBOOK_BITS, RAW_CODEBOOK
from compress_core.error_metrics import calibration_weighted_error, normalized_mse
from compress_core.errors import NonFiniteValues
from compress_core.nbytes import predicted_nbytes

#: raw, which has 16 bits alone, has its own tests
CODEBOOKS = tuple(name for name in CODEBOOK_BITS if name != RAW_CODEBOOK)
OURS = tuple(name for name in CODEBOOKS if name not in BASELINE_CODEBOOKS)


def config(codebook: str, b_q: int = 3, **fields: Any) -> CompressionConfig:
    """A cheap config: few states, few iterations; baselines lose their rank."""
    if codebook in BASELINE_CODEBOOKS:
        fields.pop("rank", None)
    return CompressionConfig(codebook=codebook, b_q=b_q, states=256, **{"iterations": 2} | fields)


def layer(out_features: int, in_features: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight with unequal rows and a Hessian of correlated inputs."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(out_features, in_features, generator=g) * torch.exp(0.5 * torch.randn(out_features, 1, generator=g))
    x = torch.randn(2 * in_features + 4, in_features, generator=g) * torch.exp(torch.randn(in_features, generator=g))
    x = x + 0.5 * x.roll(1, 1) + 0.2
    return 0.02 * w, x.T @ x / x.shape[0]


def checked(weight: Tensor, hessian: Tensor | None, config: CompressionConfig) -> Tensor:
    """What it dequantises to; finite, of the predicted bytes, and the same after a round trip."""
    compressed = compress_matrix(weight, hessian, config)
    w_hat = compressed.dequantize()
    assert w_hat.shape == weight.shape
    assert w_hat.dtype == torch.float32
    assert torch.isfinite(w_hat).all()
    assert compressed.nbytes == predicted_nbytes(config, *weight.shape)
    again = CompressedMatrix.from_tensors(compressed.tensors(), compressed.meta())
    assert torch.equal(again.dequantize(), w_hat)
    return w_hat


@pytest.mark.parametrize(("codebook", "bits"), [(name, b) for name in CODEBOOKS for b in CODEBOOK_BITS[name]])
def test_every_codebook_at_every_bits(codebook: str, bits: int) -> None:
    w, h = layer(17, 44)
    for rank in (0,) if codebook in BASELINE_CODEBOOKS else (0, 2):
        w_hat = checked(w, h, config(codebook, bits, rank=rank))
        assert calibration_weighted_error(w, w_hat, h) < 6 * 4.0**-bits


@pytest.mark.parametrize(
    "shape", [(8, 8), (1, 8), (9, 9), (1, 172), (20, 344), (12, 251), (251, 12), (2, 1), (1, 1)], ids=str
)
@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_any_width_and_height(codebook: str, shape: tuple[int, int]) -> None:
    w, h = layer(*shape)
    for rank in {0, 1, min(shape)} if codebook in OURS and min(shape) < 20 else {0}:
        w_hat = checked(w, h, config(codebook, 4, rank=rank, factor_bits=8, iterations=1))
        assert calibration_weighted_error(w, w_hat, h) < 0.2


@pytest.mark.parametrize("factor_bits", [4, 8, 16])
@pytest.mark.parametrize("codebook", OURS)
def test_ranks_up_to_the_highest(codebook: str, factor_bits: int) -> None:
    w, h = layer(72, 64)
    errors = {}
    for rank in (0, 1, 3, 16, 60, 64):
        w_hat = checked(w, h, config(codebook, 2, rank=rank, factor_bits=factor_bits))
        errors[rank] = calibration_weighted_error(w, w_hat, h)
    assert errors[16] < errors[3] < errors[0]
    assert max(errors[60], errors[64]) < errors[16]


def _dead(h: Tensor) -> Tensor:
    alive = (torch.arange(h.shape[0]) % 3 > 0).to(h.dtype)
    return h * alive * alive[:, None]


def _repeated(h: Tensor) -> Tensor:
    """Every input arrives twice."""
    half = h[: h.shape[0] // 2, : h.shape[0] // 2]
    return torch.cat([torch.cat([half, half], 1)] * 2)


def _one_loud(h: Tensor) -> Tensor:
    gain = torch.ones(h.shape[0])
    gain[5] = 1e4
    return h * gain * gain[:, None]


HESSIANS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "none": lambda _: None,
    "zero": lambda h: 0 * h,
    "rank 1": lambda h: torch.outer(h[0], h[0]),
    "all ones": torch.ones_like,
    "dead inputs": _dead,
    "repeated inputs": _repeated,
    "one loud input": _one_loud,
    "one input alone": lambda h: torch.diag((torch.arange(h.shape[0]) == 3).float()),
    "float64": lambda h: h.double(),
    "tiny": lambda h: 1e-30 * h,
    "huge": lambda h: 1e25 * h,
    "a view": lambda h: h.repeat(2, 2)[::2, ::2] * 0 + h.T.contiguous().T,
    "a little asymmetric": lambda h: h + 1e-6 * h.max() * torch.triu(torch.ones_like(h), 1),
}


@pytest.mark.parametrize("kind", HESSIANS)
@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_any_hessian(codebook: str, kind: str) -> None:
    w, h = layer(16, 36)
    hessian = HESSIANS[kind](h)
    for rank in (0, 3) if codebook in OURS else (0,):
        w_hat = checked(w, hessian, config(codebook, 3, rank=rank))
        assert calibration_weighted_error(w, w_hat, hessian) < 0.2 or kind == "zero"
        assert normalized_mse(w, w_hat) < 30  # what H does not see may suffer, but not run away


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_a_zero_matrix_stays_zero(codebook: str) -> None:
    _, h = layer(9, 20)
    assert (checked(torch.zeros(9, 20), h, config(codebook, 2, rank=2)) == 0).all()


@pytest.mark.parametrize("size", [10.0, 1e3, 3e4])
@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_an_outlier_does_not_spoil_other_rows(codebook: str, size: float) -> None:
    w, h = layer(16, 48)
    loud = w.clone()
    loud[3, 5] = size * w.abs().max()
    others = torch.arange(16) != 3
    before = checked(w, h, config(codebook, 4))
    after = checked(loud, h, config(codebook, 4))
    # a trellis tile spans rows and serves the one that weighs most first
    share = 6 if codebook == "trellis" else 1.5
    allowed = share * calibration_weighted_error(w[others], before[others], h) + 1e-6
    assert calibration_weighted_error(w[others], after[others], h) < allowed
    if codebook in OURS:  # a grid a row has no level left for the outlier's neighbours
        assert calibration_weighted_error(loud, after, h) < 0.01


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_a_value_that_is_no_number_is_named(codebook: str, value: float) -> None:
    w, h = layer(8, 16)
    bad_w, bad_h = w.clone(), h.clone()
    bad_w[7, 15] = value
    bad_h[0, 15] = value
    for rank in (0, 2):
        with pytest.raises(NonFiniteValues, match="the weight has NaN or infinite entries"):
            compress_matrix(bad_w, h, config(codebook, 2, rank=rank))
        if codebook != "rtn":  # which looks at no Hessian
            with pytest.raises(NonFiniteValues, match="the Hessian has NaN or infinite entries"):
                compress_matrix(w, bad_h, config(codebook, 2, rank=rank))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_dtype_and_strides_change_nothing(codebook: str, dtype: torch.dtype) -> None:
    w, h = layer(18, 24)
    w = w.to(dtype)
    one = config(codebook, 2, rank=2)
    expected = checked(w.float(), h, one)
    strided = torch.stack([w, w.flip(0)], dim=1)[:, 0]
    transposed = w.T.contiguous().T
    assert not strided.is_contiguous()
    assert not transposed.is_contiguous()
    for weight in (w, strided, transposed, torch.nn.Parameter(w)):
        assert torch.equal(compress_matrix(weight, h, one).dequantize(), expected)
    repeated = w[:1].expand(6, 24)  # stride 0
    assert torch.equal(
        compress_matrix(repeated, h, one).dequantize(), compress_matrix(repeated.clone(), h, one).dequantize()
    )


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_the_callers_tensors_are_left_alone(codebook: str) -> None:
    w, h = layer(12, 20)
    w_before, h_before = w.clone(), h.clone()
    compress_matrix(w, h, config(codebook, 2, rank=2))
    assert torch.equal(w, w_before)
    assert torch.equal(h, h_before)
