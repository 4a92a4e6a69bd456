"""MatrixMeasurement: what one config costs one matrix."""

from __future__ import annotations

from dataclasses import dataclass

from compress_core.config import CompressionConfig


@dataclass(frozen=True, slots=True)
class ResidualSpectrum:
    """Shares of ‖D·H^½‖² that the best rank-r term captures."""

    #: 1, 2, 4, … and the largest one asked for
    ranks: tuple[int, ...]
    #: for each of these ranks, 0 … 1, rising
    captured: tuple[float, ...]

    def to_dict(self) -> dict[str, list[float] | list[int]]:
        """{"ranks": […], "captured": […]}, as the database keeps it."""
        return {"ranks": list(self.ranks), "captured": list(self.captured)}


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
    #: of a config of rank 0 in a sweep with ranks: what low-rank terms of W − Ŵ would capture
    residual_spectrum: ResidualSpectrum | None = None
