"""What holds for every shape, weight, Hessian and config."""

from __future__ import annotations

import itertools
import json

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from compress_core import CompressedMatrix, CompressionConfig, compress_matrix
from compress_core.config import BASELINE_CODEBOOKS, CODEBOOK_BITS, FACTOR_BITS, UNROTATED_CODEBOOKS
from compress_core.error_metrics import calibration_weighted_error
from compress_core.nbytes import predicted_nbytes

WEIGHTS = ("normal", "heavy", "sparse", "low rank", "positive", "dead rows")
HESSIANS = ("none", "full", "low rank", "diagonal", "dead inputs")


def make_weight(kind: str, rows: int, columns: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=g)
    if kind == "heavy":
        return w / torch.rand(rows, columns, generator=g).clamp(min=1e-3)
    if kind == "sparse":
        return w * (torch.rand(rows, columns, generator=g) < 0.1)
    if kind == "low rank":
        return w[:, :1] @ w[:1]
    if kind == "positive":
        return w.abs() + 3
    return w * (torch.arange(rows) % 2)[:, None] if kind == "dead rows" else w


def make_hessian(kind: str, width: int, seed: int) -> Tensor | None:
    g = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(3 * width, width, generator=g) * torch.exp(torch.randn(width, generator=g))
    if kind == "none":
        return None
    if kind == "low rank":
        x = x[:2]
    if kind == "dead inputs":
        x = x * (torch.arange(width) % 2 == 0)
    h = x.T @ x / x.shape[0]
    return h * torch.eye(width) if kind == "diagonal" else h


@st.composite
def configs(draw: st.DrawFn, limit: int) -> CompressionConfig:
    """A config that a matrix with min(out, in) = ``limit`` can have; the search is kept short."""
    codebook = draw(st.sampled_from(list(CODEBOOK_BITS)))
    pairs = [*FACTOR_BITS, *itertools.permutations(FACTOR_BITS, 2)]
    return CompressionConfig(
        codebook=codebook,
        b_q=draw(st.sampled_from(CODEBOOK_BITS[codebook])),
        rank=0 if codebook in UNROTATED_CODEBOOKS else draw(st.integers(0, limit)),
        factor_bits=draw(st.sampled_from(pairs)),
        seed=draw(st.integers(0, 2**31 - 1)),
        iterations=draw(st.integers(1, 2)),
        states=256,
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor | None, CompressionConfig]:
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 70))
    seed = draw(st.integers(0, 99))
    weight = make_weight(draw(st.sampled_from(WEIGHTS)), rows, columns, seed)
    hessian = make_hessian(draw(st.sampled_from(HESSIANS)), columns, seed)
    return weight, hessian, draw(configs(min(rows, columns)))


@given(cases())
@settings(max_examples=80, deadline=None)
@example((torch.ones(1, 1), torch.zeros(1, 1), CompressionConfig(b_q=2, rank=1, states=256)))
def test_any_matrix_and_config(case: tuple[Tensor, Tensor | None, CompressionConfig]) -> None:
    weight, hessian, config = case
    compressed = compress_matrix(weight, hessian, config)
    w_hat = compressed.dequantize()
    assert w_hat.shape == weight.shape
    assert torch.isfinite(w_hat).all()
    assert compressed.nbytes == predicted_nbytes(config, *weight.shape)
    assert torch.equal(compressed.dequantize(), w_hat)
    read = CompressedMatrix.from_tensors(compressed.tensors(), json.loads(json.dumps(compressed.meta())))
    assert torch.equal(read.dequantize(), w_hat)
    again = compress_matrix(weight, hessian, config)
    assert all(torch.equal(again.tensors()[name], tensor) for name, tensor in compressed.tensors().items())
    zero = calibration_weighted_error(weight, torch.zeros_like(weight), hessian)
    if zero > 0 and config.codebook not in BASELINE_CODEBOOKS:  # whose grids have no zero
        assert calibration_weighted_error(weight, w_hat, hessian) <= zero


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_equal_configs_have_one_hash_and_survive_json(data: st.DataObject) -> None:
    config = data.draw(configs(64))
    again = CompressionConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.config_hash == config.config_hash
