"""Errors of an approximation Ŵ of W, D = W − Ŵ. All sums in float64.

A zero denominator (W = 0, or W orthogonal to H) has a definition: the error is 0 if D has none either, else 1. Zero
means: not told apart from the rounding of the sum, or an orthogonal W would have an error of any size.

Shapes: w_OI, d_OI, h_II.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

#: entries of W and of H that are in float64 at once
_ENTRIES = 1 << 22
#: of ‖X‖²·tr(H), which tr(X H Xᵀ) never exceeds: below it float64 sums hold nothing but rounding
_ROUNDING = 1e-14


def _ratio(numerator: float, denominator: float) -> float:
    if denominator > 0.0:
        return max(numerator, 0.0) / denominator
    return 0.0 if numerator <= 0.0 else 1.0


def _energy(x_OI: Tensor, minus_OI: Tensor | None, h_II: Tensor | None) -> float:
    """tr(X H Xᵀ) in float64 for the difference X of two matrices; None is zero, and the identity."""
    total = most = 0.0
    for rows in _slices(x_OI.shape[0], x_OI.shape[1]):
        x_RI = x_OI[rows].to(torch.float64)
        if minus_OI is not None:
            x_RI = x_RI - minus_OI[rows].to(torch.float64)
        most += float(x_RI.square().sum())
        if h_II is not None:
            for columns in _slices(h_II.shape[1], h_II.shape[0]):
                total += float(((x_RI @ h_II[:, columns].to(torch.float64)) * x_RI[:, columns]).sum())
    if h_II is None:
        return most
    return 0.0 if abs(total) <= _ROUNDING * most * float(h_II.diagonal().to(torch.float64).sum()) else total


def _slices(count: int, length: int) -> Iterator[slice]:
    """So many rows (or columns), each so long, in slices."""
    step = max(1, _ENTRIES // max(1, length))
    for first in range(0, count, step):
        yield slice(first, min(first + step, count))


def raw_mse(w_OI: Tensor, w_hat_OI: Tensor) -> float:
    """Mean of D², in squared weight units."""
    return _energy(w_OI, w_hat_OI, None) / w_OI.numel()


def normalized_mse(w_OI: Tensor, w_hat_OI: Tensor) -> float:
    """‖D‖² / ‖W‖², dimensionless."""
    return _ratio(_energy(w_OI, w_hat_OI, None), _energy(w_OI, None, None))


def calibration_weighted_error(w_OI: Tensor, w_hat_OI: Tensor, h_II: Tensor | None) -> float:
    """tr(D H Dᵀ) / tr(W H Wᵀ), dimensionless: the relative error of the outputs over the calibration data.

    With ``h_II`` None, H is the identity and this is :func:`normalized_mse`.
    """
    return _ratio(_energy(w_OI, w_hat_OI, h_II), _energy(w_OI, None, h_II))


def sqnr(w_OI: Tensor, w_hat_OI: Tensor) -> float:
    """Signal to quantisation noise ratio, 10·log10(‖W‖²/‖D‖²) in dB; +inf where D = 0."""
    error = normalized_mse(w_OI, w_hat_OI)
    return math.inf if error == 0.0 else -10.0 * math.log10(error)
