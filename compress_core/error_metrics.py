"""Errors of an approximation Ŵ of W, D = W − Ŵ. All sums in float64.

A zero denominator (W = 0, or W orthogonal to H) has a definition: the error is 0 if D has none either, else 1. Zero
means: not told apart from the rounding of the sum, or an orthogonal W would have an error of any size.

Shapes: w_OI, d_OI, h_II.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: entries of W and of H that are in float64 at once
_ENTRIES = 1 << 22
#: columns of H that are multiplied at once, at most: what lies below them is left out, because H is symmetric
_PANEL = 128
#: of ‖X‖²·tr(H), which tr(X H Xᵀ) never exceeds: below it float64 sums hold nothing but rounding
_ROUNDING = 1e-14


@dataclass(frozen=True)
class Energies:
    """Of a matrix X."""

    #: ‖X‖²
    plain: float
    #: tr(X H Xᵀ); the same as ``plain`` where H is None
    weighted: float


@dataclass(frozen=True)
class Errors:
    """The three errors of an approximation; see the functions of these names."""

    raw_mse: float
    normalized_mse: float
    calibration_weighted_error: float


def _ratio(numerator: float, denominator: float) -> float:
    if denominator > 0.0:
        return max(numerator, 0.0) / denominator
    return 0.0 if numerator <= 0.0 else 1.0


def energies(x_OI: Tensor, minus_OI: Tensor | None, h_II: Tensor | None) -> Energies:
    """Of the difference X of two matrices, in float64; None is zero, and the identity."""
    plain = torch.zeros((), dtype=torch.float64, device=x_OI.device)
    total = torch.zeros_like(plain)
    for rows in _slices(x_OI.shape[0], x_OI.shape[1], most=_ENTRIES):
        x_RI = x_OI[rows].to(torch.float64)
        if minus_OI is not None:
            x_RI = x_RI - minus_OI[rows].to(torch.float64)
        plain += x_RI.square().sum()
        if h_II is not None:
            for at in _slices(h_II.shape[0], h_II.shape[0], most=_PANEL):
                total += _panel_energy(x_RI, h_II, at)
    if h_II is None:
        return Energies(float(plain), float(plain))
    most = float(plain) * float(h_II.diagonal().to(torch.float64).sum())
    return Energies(float(plain), 0.0 if abs(float(total)) <= _ROUNDING * most else float(total))


def _panel_energy(x_RI: Tensor, h_II: Tensor, at: slice) -> Tensor:
    """What the columns ``at`` of H add to tr(X H Xᵀ), with the rows above the diagonal block counted for below too."""
    above_IP = h_II[: at.stop, at].to(torch.float64)
    # half-precision sums need not be symmetric
    above_IP[: at.start] += h_II[at, : at.start].T.to(torch.float64)
    return ((x_RI[:, : at.stop] @ above_IP) * x_RI[:, at]).sum()


def _slices(count: int, length: int, most: int) -> Iterator[slice]:
    """So many rows (or columns), each so long, in slices of at most ``most``, and of at most ``_ENTRIES`` entries."""
    step = max(1, min(most, _ENTRIES // max(1, length)))
    for first in range(0, count, step):
        yield slice(first, min(first + step, count))


def errors(w_OI: Tensor, w_hat_OI: Tensor, h_II: Tensor | None, of_weight: Energies | None = None) -> Errors:
    """All errors at once.

    Args:
        of_weight: ``energies(w_OI, None, h_II)`` where they are known: many approximations may have one W.
    """
    of_weight = of_weight or energies(w_OI, None, h_II)
    of_error = energies(w_OI, w_hat_OI, h_II)
    return Errors(
        raw_mse=of_error.plain / w_OI.numel(),
        normalized_mse=_ratio(of_error.plain, of_weight.plain),
        calibration_weighted_error=_ratio(of_error.weighted, of_weight.weighted),
    )


def raw_mse(w_OI: Tensor, w_hat_OI: Tensor) -> float:
    """Mean of D², in squared weight units."""
    return energies(w_OI, w_hat_OI, None).plain / w_OI.numel()


def normalized_mse(w_OI: Tensor, w_hat_OI: Tensor) -> float:
    """‖D‖² / ‖W‖², dimensionless."""
    return errors(w_OI, w_hat_OI, None).normalized_mse


def calibration_weighted_error(w_OI: Tensor, w_hat_OI: Tensor, h_II: Tensor | None) -> float:
    """tr(D H Dᵀ) / tr(W H Wᵀ), dimensionless: the relative error of the outputs over the calibration data.

    With ``h_II`` None, H is the identity and this is :func:`normalized_mse`.
    """
    return errors(w_OI, w_hat_OI, h_II).calibration_weighted_error


def sqnr(w_OI: Tensor, w_hat_OI: Tensor) -> float:
    """Signal to quantisation noise ratio, 10·log10(‖W‖²/‖D‖²) in dB; +inf where D = 0."""
    error = normalized_mse(w_OI, w_hat_OI)
    return math.inf if error == 0.0 else -10.0 * math.log10(error)
