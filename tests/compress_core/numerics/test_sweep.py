import math

import pytest
import torch

from compress_core import CompressionConfig, compress_matrix, sweep_matrix
from compress_core.error_metrics import calibration_weighted_error, normalized_mse, raw_mse, sqnr
from compress_core.errors import Interrupted, NonFiniteValues, RankTooLarge

GRID = [CompressionConfig(b_q=b, rank=r, iterations=3) for b in (2, 3) for r in (0, 2, 8)] + [
    CompressionConfig(b_q=4, codebook="rtn"),
    CompressionConfig(b_q=5, rank=3, codebook="scalar", factor_bits=16, seed=4),
]


def test_each_result_is_what_compress_matrix_gives_alone(make_layer) -> None:
    w, h = make_layer(40, 52)
    for measured, config in zip(sweep_matrix(w, h, GRID), GRID, strict=True):
        alone = compress_matrix(w, h, config)
        w_hat = alone.dequantize()
        assert measured.config == config
        assert measured.nbytes == alone.nbytes
        assert measured.raw_mse == raw_mse(w, w_hat)
        assert measured.normalized_mse == normalized_mse(w, w_hat)
        assert measured.calibration_weighted_error == calibration_weighted_error(w, w_hat, h)
        assert measured.bits_per_weight == pytest.approx(8 * alone.nbytes / w.numel())
        assert measured.seconds >= 0


def test_measurements_arrive_one_by_one_and_may_stop(make_layer) -> None:
    w, h = make_layer(16, 24)
    seen = []

    def stop_after_two(measurement) -> None:
        seen.append(measurement)
        if len(seen) == 2:
            raise Interrupted("paused")

    with pytest.raises(Interrupted):
        sweep_matrix(w, h, GRID, on_measurement=stop_after_two)
    assert [m.config for m in seen] == [GRID[0], GRID[3]]  # what differs in b_q alone comes together


def test_a_bad_config_is_refused_before_any_work(make_layer) -> None:
    w, h = make_layer(16, 24)
    seen = []
    with pytest.raises(RankTooLarge):
        sweep_matrix(w, h, [GRID[0], CompressionConfig(b_q=2, rank=17)], on_measurement=seen.append)
    assert not seen


def test_errors_without_a_denominator_are_defined() -> None:
    zero, one = torch.zeros(2, 3), torch.ones(2, 3)
    h = torch.zeros(3, 3)
    assert normalized_mse(zero, zero) == 0.0
    assert normalized_mse(zero, one) == 1.0
    assert calibration_weighted_error(one, one, h) == 0.0
    assert calibration_weighted_error(one, zero, h) == 0.0  # D has no energy under H either
    h[0, 0] = 1
    orthogonal = torch.tensor([[0.0, 1.0, 1.0]])
    assert calibration_weighted_error(orthogonal, one[:1], h) == 1.0
    assert sqnr(one, one) == math.inf
    assert sqnr(one, 0.9 * one) == pytest.approx(20.0, abs=1e-4)


def test_a_denominator_of_rounding_errors_is_zero() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5, 24, generator=g, dtype=torch.float64)
    h = x.T @ x / 5
    null = torch.linalg.svd(x).Vh[5:]  # orthogonal to every input, in a general position
    for seed in range(8):
        w = torch.randn(3, 19, generator=g.manual_seed(seed), dtype=torch.float64) @ null
        d = torch.randn(3, 24, generator=g, dtype=torch.float64)
        assert calibration_weighted_error(w, w - d, h) == 1.0
        assert calibration_weighted_error(w, 0.5 * w, h) == 0.0


def test_errors_that_are_no_numbers_are_refused(make_layer) -> None:
    w, h = make_layer(8, 16)
    with pytest.raises(NonFiniteValues, match=r"trellis 2b r0.*too large"):
        sweep_matrix(3e38 * w.sign(), h, [CompressionConfig(b_q=2)])


def test_weighted_error_with_identity_is_the_normalized_one(make_layer) -> None:
    w, _ = make_layer(6, 9)
    w_hat = w + 0.01
    assert calibration_weighted_error(w, w_hat, torch.eye(9)) == pytest.approx(normalized_mse(w, w_hat), rel=1e-12)
    assert calibration_weighted_error(w, w_hat, None) == normalized_mse(w, w_hat)
    assert raw_mse(w, w_hat) == pytest.approx(1e-4, rel=1e-4)
