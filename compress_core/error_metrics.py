"""Errors of an approximation Ŵ of W, D = W − Ŵ. All sums in float64.

A zero denominator (W = 0, or W orthogonal to H) has a definition: the error is 0 if D has none either, else 1. Zero
means: not told apart from the rounding of the sum, or an orthogonal W would have an error of any size.

Shapes: w_OI, d_OI, h_II.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: rows multiplied by H at once, so that the product never doubles the memory of W
_ROWS = 4096
#: of ‖X‖²·tr(H), which tr(X H Xᵀ) never exceeds: below it float64 sums hold nothing but rounding
_ROUNDING = 1e-14


def _ratio(numerator: float, denominator: float) -> float:
    if denominator > 0.0:
        return max(numerator, 0.0) / denominator
    return 0.0 if numerator <= 0.0 else 1.0


def _energy(x_OI: Tensor, h_II: Tensor | None) -> float:
    """tr(X H Xᵀ) in float64; H = None is the identity."""
    if h_II is None:
        return sum(float(rows.to(torch.float64).square().sum()) for rows in x_OI.split(_ROWS))
    h64 = h_II.to(torch.float64)
    total = most = 0.0
    for rows in x_OI.split(_ROWS):
        rows64 = rows.to(torch.float64)
        total += float(((rows64 @ h64) * rows64).sum())
        most += float(rows64.square().sum())
    return 0.0 if abs(total) <= _ROUNDING * most * float(h64.diagonal().sum()) else total


def raw_mse(w_OI: Tensor, w_hat_OI: Tensor) -> float:
    """Mean of D², in squared weight units."""
    return float((w_OI.to(torch.float64) - w_hat_OI.to(torch.float64)).square().mean())


def normalized_mse(w_OI: Tensor, w_hat_OI: Tensor) -> float:
    """‖D‖² / ‖W‖², dimensionless."""
    d_OI = w_OI.to(torch.float64) - w_hat_OI.to(torch.float64)
    return _ratio(_energy(d_OI, None), _energy(w_OI, None))


def calibration_weighted_error(w_OI: Tensor, w_hat_OI: Tensor, h_II: Tensor | None) -> float:
    """tr(D H Dᵀ) / tr(W H Wᵀ), dimensionless: the relative error of the outputs over the calibration data.

    With ``h_II`` None, H is the identity and this is :func:`normalized_mse`.
    """
    d_OI = w_OI.to(torch.float64) - w_hat_OI.to(torch.float64)
    return _ratio(_energy(d_OI, h_II), _energy(w_OI, h_II))


def sqnr(w_OI: Tensor, w_hat_OI: Tensor) -> float:
    """Signal to quantisation noise ratio, 10·log10(‖W‖²/‖D‖²) in dB; +inf where D = 0."""
    error = normalized_mse(w_OI, w_hat_OI)
    return math.inf if error == 0.0 else -10.0 * math.log10(error)
