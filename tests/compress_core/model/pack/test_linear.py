"""CompressedLinear: decodes while it multiplies, stays packed in memory, gives what the dense weight gives."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from compress_core.compressed import CompressedMatrix
from compress_core.config import CompressionConfig
from compress_core.decompose import compress_matrix
from compress_core.errors import PackedFormatError, RankTooLarge
from compress_core.pack import CompressedLinear
from compress_core.pack.linear import multiply

CONFIGS = (
    CompressionConfig(b_q=2, rank=4, codebook="e8", iterations=1),
    CompressionConfig(b_q=3, rank=3, factor_bits=(16, 8), codebook="e8", seed=3, iterations=1),
    CompressionConfig(b_q=4, codebook="e8", iterations=1),
    CompressionConfig(b_q=5, rank=1, factor_bits=16, codebook="scalar", iterations=1),
    CompressionConfig(b_q=2, codebook="scalar", iterations=1),
    CompressionConfig(b_q=4, codebook="rtn"),
    CompressionConfig(b_q=3, codebook="gptq"),
)
SHAPES = ((24, 36), (37, 43), (8, 64))


def _matrix(config: CompressionConfig, shape: tuple[int, int]) -> CompressedMatrix:
    weight = 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return compress_matrix(weight, None, config)


def _input(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_product_is_that_of_the_dequantised_weight(config: CompressionConfig, shape: tuple[int, int]) -> None:
    matrix = _matrix(config, shape)
    bias = _input(shape[0])
    linear = CompressedLinear.from_matrix(matrix, bias=bias)
    x = _input(2, 5, shape[1])
    expected = nn.functional.linear(x, matrix.dequantize(), bias)
    torch.testing.assert_close(linear(x), expected, rtol=1e-5, atol=2e-6)
    dense = linear.dequantized(torch.float32)
    assert torch.equal(dense.weight, matrix.dequantize())
    assert torch.equal(dense(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_half_precision_products(config: CompressionConfig, dtype: torch.dtype) -> None:
    matrix = _matrix(config, (24, 36))
    x = _input(7, 36)
    x[3] *= 30_000 / x[3].abs().max()  # an outlier token: its product in units of the scale leaves float16's range
    expected = x @ matrix.dequantize().T
    decoded = matrix.decode()
    got = multiply(x if decoded.rotation is None else decoded.rotation.rotate(x), decoded, dtype)
    assert got.dtype == torch.float32
    error = (got - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_output_has_the_type_of_the_input(dtype: torch.dtype) -> None:
    linear = CompressedLinear.from_matrix(_matrix(CONFIGS[0], (24, 36)), bias=_input(24)).to(dtype)
    x = _input(3, 36, dtype=dtype)
    out = linear(x)
    assert out.dtype == dtype
    expected = x.float() @ linear.matrix.dequantize().T + linear.bias.float()
    torch.testing.assert_close(out, expected.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize("change", [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double()])
def test_changes_of_type_leave_the_packed_weight_alone(change) -> None:
    linear = CompressedLinear.from_matrix(_matrix(CONFIGS[1], (24, 36)), bias=_input(24))
    packed = linear.packed.clone()
    change(linear)
    assert linear.packed.dtype == torch.uint8
    assert torch.equal(linear.packed, packed)


def test_memory_is_the_packed_bytes_and_state_round_trips() -> None:
    matrix = _matrix(CONFIGS[0], (24, 36))
    linear = CompressedLinear.from_matrix(matrix)
    assert [(name, buffer.nbytes) for name, buffer in linear.named_buffers()] == [("packed", matrix.nbytes)]
    assert list(linear.parameters()) == []
    stream = io.BytesIO()
    torch.save(linear.state_dict(), stream)
    stream.seek(0)
    other = CompressedLinear(matrix.config, 36, 24)
    other.load_state_dict(torch.load(stream))
    x = _input(4, 36)
    assert torch.equal(other(x), linear(x))
    assert torch.equal(copy.deepcopy(linear)(x), linear(x))
    linear(x)
    assert sum(buffer.nbytes for buffer in linear.buffers()) == matrix.nbytes


def test_gradients_reach_the_input_even_after_inference_mode() -> None:
    linear = CompressedLinear.from_matrix(_matrix(CompressionConfig(b_q=2, rank=2, seed=91), (24, 36)), bias=_input(24))
    with torch.inference_mode():
        linear(_input(1, 36))
    x = _input(4, 36).requires_grad_()
    linear(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, linear.matrix.dequantize().sum(0).expand(4, -1), rtol=1e-4, atol=1e-5)
    assert torch.equal(linear.bias.grad, torch.full((24,), 4.0))


def test_the_blob_holds_all_parts_without_gaps() -> None:
    for config in CONFIGS:
        matrix = _matrix(config, (37, 43))
        blob = matrix.blob()
        assert blob.numel() == matrix.nbytes
        again = CompressedMatrix.from_blob(blob, config, (37, 43))
        assert {n: (t.dtype, t.shape) for n, t in again.packed.items()} == {
            n: (t.dtype, t.shape) for n, t in matrix.packed.items()
        }
        assert all(torch.equal(again.packed[name], tensor) for name, tensor in matrix.packed.items())


def test_impossible_blobs_and_ranks_are_refused() -> None:
    matrix = _matrix(CONFIGS[0], (24, 36))
    with pytest.raises(PackedFormatError, match=f"stored as {matrix.nbytes} bytes"):
        CompressedMatrix.from_blob(matrix.blob()[:-1], matrix.config, (24, 36))
    with pytest.raises(PackedFormatError, match=r"not as torch\.int8"):
        CompressedMatrix.from_blob(matrix.blob().view(torch.int8), matrix.config, (24, 36))
    with pytest.raises(RankTooLarge):
        CompressedLinear(CompressionConfig(b_q=2, rank=9), 64, 8)
