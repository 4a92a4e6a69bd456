import math

import pytest
import torch

from compress_core import CompressionConfig, compress_matrix, sweep_matrix
from compress_core.context import InputContext, prepare_matrix
from compress_core.error_metrics import calibration_weighted_error, normalized_mse, raw_mse, sqnr
from compress_core.errors import Interrupted, NonFiniteValues, RankTooLarge
from compress_core.ldlq import Feedback
from compress_core.sweep import in_groups

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


# --- what configs share


def test_configs_that_differ_in_b_q_alone_come_together() -> None:
    order = [GRID[number] for number in in_groups(GRID)]
    assert sorted(map(str, order)) == sorted(map(str, GRID))
    assert [(c.b_q, c.rank) for c in order[:6]] == [(2, 0), (3, 0), (2, 2), (3, 2), (2, 8), (3, 8)]
    assert order[6:] == GRID[6:]


def test_a_rank_is_softened_once_for_all_b_q(make_layer, monkeypatch: pytest.MonkeyPatch) -> None:
    w, h = make_layer(24, 32)
    ranks = []
    softened_feedback = InputContext.softened_feedback

    def counted(
        self: InputContext, block: int, corrected_Ir: torch.Tensor | None, kappa: float, damping: float
    ) -> Feedback:
        if corrected_Ir is not None:
            ranks.append(corrected_Ir.shape[1])
        return softened_feedback(self, block, corrected_Ir, kappa, damping)

    monkeypatch.setattr(InputContext, "softened_feedback", counted)
    configs = [CompressionConfig(b_q=b, rank=r, codebook="scalar") for b in (2, 3, 4) for r in (2, 5)]
    sweep_matrix(w, h, configs)
    assert ranks == [2, 5]


@pytest.mark.parametrize("width", [40, 300])
def test_errors_are_estimated_to_a_few_per_cent(width: int, make_layer) -> None:
    w, h = make_layer(64, width)
    context = prepare_matrix(w, h, 0, w.device)
    estimate = float((context.w_OI @ context.input.probes_Ip).square().sum())
    # exact where there are as many probes as inputs
    assert estimate == pytest.approx(context.error(torch.zeros_like(context.w_OI)), rel=1e-4 if width == 40 else 0.1)


def test_a_hessian_that_is_not_symmetric_counts_as_its_symmetric_part(make_layer) -> None:
    w, h = make_layer(12, 200)
    w_hat = w + 0.1 * torch.randn(w.shape, generator=torch.Generator().manual_seed(0))
    skewed = h + torch.randn(h.shape, generator=torch.Generator().manual_seed(1)).triu(1)
    found = calibration_weighted_error(w, w_hat, skewed)
    assert found == pytest.approx(calibration_weighted_error(w, w_hat, (skewed + skewed.T) / 2), rel=1e-5)
    d, w64, h64 = (w - w_hat).double(), w.double(), skewed.double()
    assert found == pytest.approx(float(((d @ h64) * d).sum() / ((w64 @ h64) * w64).sum()), rel=1e-5)
