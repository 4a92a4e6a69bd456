import itertools
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compress_core import CompressedMatrix, CompressionConfig, compress_matrix, sweep_matrix
from compress_core.error_metrics import calibration_weighted_error, normalized_mse
from compress_core.errors import CalibrationError, Interrupted, NonFiniteValues, PackedFormatError, RankTooLarge
from compress_core.lowrank import decode_factor


def error(w, h, config) -> float:
    return calibration_weighted_error(w, compress_matrix(w, h, config).dequantize(), h)


@pytest.mark.parametrize("codebook", ["e8", "scalar"])
def test_more_bits_and_more_rank_mean_less_error(codebook: str, make_layer) -> None:
    w, h = make_layer(96, 64)
    by_bits = [error(w, h, CompressionConfig(b_q=b, codebook=codebook)) for b in (2, 3, 4)]
    assert by_bits[0] > 1.5 * by_bits[1] > 3 * by_bits[2]
    by_rank = [error(w, h, CompressionConfig(b_q=2, rank=r, codebook=codebook)) for r in (0, 4, 16)]
    assert by_rank[0] > by_rank[1] > by_rank[2]
    by_factor = [error(w, h, CompressionConfig(b_q=2, rank=8, factor_bits=f, codebook=codebook)) for f in (4, 8, 16)]
    assert by_factor[0] > max(by_factor[1:])


def test_scalar_goes_to_eight_bits(make_layer) -> None:
    w, h = make_layer(32, 48)
    errors = [error(w, h, CompressionConfig(b_q=b, codebook="scalar")) for b in range(2, 9)]
    assert all(a > 2 * b for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize("codebook", ["e8", "scalar"])
def test_the_hessian_is_used(codebook: str, make_layer) -> None:
    w, h = make_layer(64, 64)
    config = CompressionConfig(b_q=2, rank=4, codebook=codebook)
    assert error(w, h, config) < 0.7 * calibration_weighted_error(w, compress_matrix(w, None, config).dequantize(), h)


@pytest.mark.parametrize("shape", [(64, 172), (172, 64), (8, 8), (9, 13), (31, 97), (1, 40), (40, 1)], ids=str)
@pytest.mark.parametrize("codebook", ["e8", "scalar", "rtn"])
def test_tensors_round_trip_bit_exactly(shape: tuple[int, int], codebook: str, make_layer) -> None:
    w, h = make_layer(*shape)
    for bits, rank, factor_bits in ((2, 0, 4), (3, min(*shape, 3), 4), (4, min(*shape, 5), (8, 16))):
        rank = 0 if codebook == "rtn" else rank
        config = CompressionConfig(b_q=bits, rank=rank, factor_bits=factor_bits, codebook=codebook, iterations=2)
        compressed = compress_matrix(w, h, config)
        meta = json.loads(json.dumps(compressed.meta()))
        again = CompressedMatrix.from_tensors(compressed.tensors(), meta)
        assert again.config == config
        assert torch.equal(again.dequantize(), compressed.dequantize())
        assert compressed.dequantize().shape == shape
        assert compressed.dequantize().dtype == torch.float32


def test_same_seed_same_bytes_other_seed_other_bytes(make_layer) -> None:
    w, h = make_layer(48, 40)
    config = CompressionConfig(b_q=2, rank=4)
    first, second = (compress_matrix(w, h, config).tensors() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = compress_matrix(w, h, CompressionConfig(b_q=2, rank=4, seed=1)).tensors()
    assert not torch.equal(first["q_codes"], other["q_codes"])


@pytest.mark.parametrize("codebook", ["e8", "scalar"])
@pytest.mark.parametrize("rank", [0, 1, 5])
def test_degenerate_hessians(codebook: str, rank: int, make_layer) -> None:
    w, h = make_layer(24, 36)
    alive = (torch.arange(36) > 5).float()
    x = torch.randn(2, 36, generator=torch.Generator().manual_seed(1))
    config = CompressionConfig(b_q=3, rank=rank, codebook=codebook, iterations=2)
    for hessian in (None, h * 0, h * alive * alive[:, None], x.T @ x, torch.ones(36, 36), 1e-20 * h, 1e12 * h):
        w_hat = compress_matrix(w, hessian, config).dequantize()
        assert torch.isfinite(w_hat).all()
        assert calibration_weighted_error(w, w_hat, hessian) < 0.25 or not bool(hessian.any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_singular_hessian_in_half_precision_is_taken(dtype: torch.dtype, make_layer) -> None:
    w, _ = make_layer(24, 36)
    x = torch.randn(8, 36, generator=torch.Generator().manual_seed(1))
    rounded = (x.T @ x).to(dtype)  # rounding makes it indefinite
    assert float(torch.linalg.eigvalsh(rounded.float())[0]) < 0
    for rank in (0, 4):
        w_hat = compress_matrix(w, rounded, CompressionConfig(b_q=3, rank=rank, iterations=2)).dequantize()
        assert calibration_weighted_error(w, w_hat, x.T @ x) < 0.05


def test_a_hessian_that_is_none_is_refused(make_layer) -> None:
    w, h = make_layer(8, 16)
    signs = torch.diag(torch.tensor([1.0, -1.0]).repeat(8))
    for wrong in (-h, signs, signs + 0.1 * torch.eye(16)):
        with pytest.raises(CalibrationError, match="not positive semidefinite"):
            compress_matrix(w, wrong, CompressionConfig(b_q=2))


@pytest.mark.parametrize("codebook", ["e8", "scalar", "rtn"])
def test_degenerate_weights(codebook: str, make_layer) -> None:
    w, h = make_layer(24, 36)
    rank = 0 if codebook == "rtn" else 3
    config = CompressionConfig(b_q=4, rank=rank, codebook=codebook, iterations=2)
    assert (compress_matrix(w * 0, h, config).dequantize() == 0).all()
    outlier, dead_row, one_row = w.clone(), w.clone(), w * 0
    outlier[3, 5] = 1e4
    dead_row[2] = 0
    one_row[7] = 1
    low_rank = w[:, :1] @ w[:1]
    for weight in (outlier, dead_row, one_row, low_rank, torch.ones_like(w), 1e-30 * w, 1e30 * w):
        w_hat = compress_matrix(weight, h, config).dequantize()
        assert torch.isfinite(w_hat).all()
        if codebook != "rtn":  # whose float16 steps end at 65504
            assert normalized_mse(weight, w_hat) < 0.2
    assert (compress_matrix(dead_row, h, CompressionConfig(b_q=2)).dequantize()[2] == 0).all()


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    bits=st.integers(2, 8),
    rank=st.integers(0, 40),
    factor_bits=st.sampled_from([4, 8, 16, (4, 16)]),
    codebook=st.sampled_from(["e8", "scalar"]),
    seed=st.integers(0, 5),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape_and_config(shape, bits, rank, factor_bits, codebook, seed, make_layer) -> None:
    bits = min(bits, 4) if codebook == "e8" else bits
    config = CompressionConfig(
        b_q=bits, rank=min(rank, *shape), factor_bits=factor_bits, codebook=codebook, seed=seed, iterations=2
    )
    w, h = make_layer(*shape, seed=seed)
    compressed = compress_matrix(w, h, config)
    w_hat = compressed.dequantize()
    assert torch.isfinite(w_hat).all()
    assert calibration_weighted_error(w, w_hat, h) < 0.6
    assert torch.equal(CompressedMatrix.from_tensors(compressed.tensors(), compressed.meta()).dequantize(), w_hat)


def test_half_precision_and_strides_change_nothing(make_layer) -> None:
    w, h = make_layer(32, 24)
    config = CompressionConfig(b_q=2, rank=2)
    expected = compress_matrix(w.bfloat16().float(), h, config).dequantize()
    assert torch.equal(compress_matrix(w.bfloat16(), h, config).dequantize(), expected)
    strided = w.bfloat16().float().T.contiguous().T
    assert not strided.is_contiguous()
    assert torch.equal(compress_matrix(strided, h.double(), config).dequantize(), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("codebook", ["e8", "rtn"])
def test_non_finite_input_is_named(value: float, codebook: str, make_layer) -> None:
    w, h = make_layer(8, 8)
    config = CompressionConfig(b_q=2, codebook=codebook)
    bad = w.clone()
    bad[1, 1] = value
    with pytest.raises(NonFiniteValues, match="weight has NaN or infinite"):
        compress_matrix(bad, h, config)
    if codebook == "e8":
        bad_h = h.clone()
        bad_h[0, 0] = value
        with pytest.raises(NonFiniteValues, match="Hessian has NaN or infinite"):
            compress_matrix(w, bad_h, config)


def test_impossible_input_is_refused(make_layer) -> None:
    w, h = make_layer(8, 16)
    with pytest.raises(RankTooLarge, match="at most 8"):
        compress_matrix(w, h, CompressionConfig(b_q=2, rank=9))
    with pytest.raises(ValueError, match="needs a Hessian of that size"):
        compress_matrix(w, h[:8, :8], CompressionConfig(b_q=2))
    with pytest.raises(ValueError, match="matrix of floats"):
        compress_matrix(w.to(torch.int32), h, CompressionConfig(b_q=2))
    with pytest.raises(ValueError, match="matrix of floats"):
        compress_matrix(w[0], h, CompressionConfig(b_q=2))
    with pytest.raises(ValueError, match="matrix of floats"):
        sweep_matrix(w[0], h, [CompressionConfig(b_q=2)])


def test_progress_counts_up_and_may_stop_the_work(make_layer) -> None:
    w, h = make_layer(16, 16)
    seen: list[float] = []
    compress_matrix(w, h, CompressionConfig(b_q=2, rank=2, iterations=3), progress=seen.append)
    assert seen == sorted(seen)
    assert 0 < seen[0] <= seen[-1] == 1

    def stop(_: float) -> None:
        raise Interrupted("stop")

    with pytest.raises(Interrupted):
        compress_matrix(w, h, CompressionConfig(b_q=2, rank=2), progress=stop)


@pytest.mark.parametrize("codebook", ["trellis", "e8", "scalar", "rtn", "gptq"])
def test_progress_ends_at_one_at_rank_0_too(codebook: str, make_layer) -> None:
    w, h = make_layer(16, 16)
    seen: list[float] = []
    compress_matrix(w, h, CompressionConfig(b_q=2, codebook=codebook), progress=seen.append)
    assert seen == [1.0]


@pytest.mark.parametrize("rank", [0, 2])
def test_a_root_mean_square_below_float32_counts_as_zero(rank: int) -> None:
    w = torch.zeros(300, 20)
    w[4, 5] = 2.0**-149  # the least float32: its root mean square is none
    compressed = compress_matrix(w, None, CompressionConfig(b_q=2, rank=rank, states=256))
    assert (compressed.dequantize() == 0).all()


def test_damaged_tensors_are_named(make_layer) -> None:
    w, h = make_layer(16, 20)
    compressed = compress_matrix(w, h, CompressionConfig(b_q=3, rank=2, codebook="e8"))
    tensors, meta = compressed.tensors(), compressed.meta()
    with pytest.raises(PackedFormatError, match="q_residual"):
        CompressedMatrix.from_tensors({k: v for k, v in tensors.items() if k != "q_residual"}, meta)
    for name, tensor in tensors.items():
        with pytest.raises(PackedFormatError, match=f"{name} of a .* must have shape .* truncated"):
            CompressedMatrix.from_tensors({**tensors, name: tensor[:-1]}, meta)
        with pytest.raises(PackedFormatError, match=f"{name} must be torch"):
            CompressedMatrix.from_tensors({**tensors, name: tensor.double()}, meta)
    # the same bytes altogether, in the wrong places
    moved = {"q_tail": torch.cat([tensors["q_tail"], tensors["q_rows"][:1]]), "q_rows": tensors["q_rows"][1:]}
    with pytest.raises(PackedFormatError, match="q_rows of a"):
        CompressedMatrix.from_tensors({**tensors, **moved}, meta)
    with pytest.raises(PackedFormatError, match="not readable"):
        CompressedMatrix.from_tensors(tensors, {"shape": [16, 20]})
    with pytest.raises(PackedFormatError, match="make no sense"):
        CompressedMatrix.from_tensors(tensors, {**meta, "shape": [1, 20]})


def test_the_callers_precision_setting_comes_back(make_layer) -> None:
    w, h = make_layer(8, 8)
    torch.set_float32_matmul_precision("high")
    try:
        compress_matrix(w, h, CompressionConfig(b_q=2))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_decoding_is_exact_whatever_the_caller_has_set(make_layer, monkeypatch) -> None:
    w, h = make_layer(16, 24)
    compressed = compress_matrix(w, h, CompressionConfig(b_q=2, rank=2))
    seen = []

    def decode(*args, **kwargs):
        seen.append(torch.get_float32_matmul_precision())
        return decode_factor(*args, **kwargs)

    monkeypatch.setattr("compress_core.compressed.decode_factor", decode)
    torch.set_float32_matmul_precision("medium")
    try:
        compressed.dequantize()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["highest", "highest"]
