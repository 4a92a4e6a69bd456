"""MatrixMeasurement: what one config costs one matrix."""

from __future__ import annotations

from dataclasses import dataclass

from compress_core.config import CompressionConfig


@dataclass(frozen=True, slots=True)
class MatrixMeasurement:
    """Error and bytes of one (matrix, config).

    D = W − Ŵ. Where a denominator is zero the error is 0 if D is zero too, else 1 (see compress_core.error_metrics).
    """

    config: CompressionConfig
    #: mean of D², in squared weight units
    raw_mse: float
    #: ‖D‖² / ‖W‖²
    normalized_mse: float
    #: tr(D H Dᵀ) / tr(W H Wᵀ) on the raw H; with H = None, H is the identity
    calibration_weighted_error: float
    #: bytes that the serialiser writes for this matrix
    nbytes: int
    #: 8·nbytes / (out·in)
    bits_per_weight: float
    #: wall seconds spent on this config
    seconds: float
