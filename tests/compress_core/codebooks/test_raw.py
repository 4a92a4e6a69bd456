"""A matrix left as it is: lossless for 16-bit weights, and the smaller loss for others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from compress_core import CompressedMatrix, CompressionConfig, compress_matrix, sweep_matrix
from compress_core.errors import ConfigError, NonFiniteValues, PackedFormatError
from compress_core.nbytes import predicted_nbytes

RAW = CompressionConfig(b_q=16, codebook="raw")


def weights(seed: int = 0) -> torch.Tensor:
    return 0.02 * torch.randn(17, 44, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_weights_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    w = weights().to(dtype)
    w[0, :4] = torch.tensor([0.0, torch.finfo(dtype).max, torch.finfo(dtype).tiny, torch.finfo(dtype).smallest_normal])
    w[1, 0] = torch.finfo(dtype).smallest_normal / 4  # subnormal
    compressed = compress_matrix(w, None, RAW)
    assert compressed.nbytes == predicted_nbytes(RAW, 17, 44) == 2 * 17 * 44 + 1
    assert torch.equal(compressed.dequantize(), w.float())
    again = CompressedMatrix.from_blob(compressed.blob(), RAW, (17, 44))
    assert again.raw().dtype == dtype
    assert torch.equal(again.raw(), w)
    (measured,) = sweep_matrix(w, torch.eye(44), [RAW])
    assert (measured.raw_mse, measured.normalized_mse, measured.calibration_weighted_error) == (0.0, 0.0, 0.0)
    assert measured.nbytes == compressed.nbytes


def test_float32_weights_take_the_type_that_loses_less() -> None:
    w = weights()
    for scale, dtype in ((1.0, torch.float16), (1e6, torch.bfloat16), (1e-7, torch.bfloat16)):
        compressed = compress_matrix(scale * w, None, RAW)
        assert compressed.raw().dtype == dtype
        losses = [(scale * w - (scale * w).to(t).float()).double().square().sum() for t in (dtype, *_other(dtype))]
        assert losses[0] < losses[1]
        assert torch.equal(compressed.raw(), (scale * w).to(dtype))
    tie = torch.ones(3, 5)
    assert compress_matrix(tie, None, RAW).raw().dtype == torch.bfloat16
    largest = torch.finfo(torch.float32).max
    assert torch.isfinite(compress_matrix(torch.full((2, 2), largest), None, RAW).dequantize()).all()
    with pytest.raises(NonFiniteValues):
        compress_matrix(torch.full((2, 2), torch.nan), None, RAW)


def _other(dtype: torch.dtype) -> tuple[torch.dtype]:
    return (torch.float16,) if dtype == torch.bfloat16 else (torch.bfloat16,)


def test_it_has_16_bits_no_rank_and_one_hash() -> None:
    assert {replace(RAW, seed=s, states=256, iterations=i).config_hash for s in (0, 3) for i in (1, 5)} == {
        RAW.config_hash
    }
    assert str(RAW) == "raw 16b r0"
    with pytest.raises(ConfigError, match="leaves the matrix as it is: it takes rank 0 only"):
        CompressionConfig(b_q=16, codebook="raw", rank=4)
    for fields in ({"b_q": 8, "codebook": "raw"}, {"b_q": 16, "codebook": "trellis"}):
        with pytest.raises(ConfigError, match="has no b_q"):
            CompressionConfig(**fields)


def test_an_unknown_type_is_named() -> None:
    blob = compress_matrix(weights(), None, RAW).blob()
    blob[-1] = 2
    with pytest.raises(PackedFormatError, match="unknown type 2"):
        CompressedMatrix.from_blob(blob, RAW, (17, 44)).dequantize()
