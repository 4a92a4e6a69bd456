"""Noise of the measurements: the variance of log error per projection type and bits, as residuals show it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress_core.fit.observation import ObservationTable

FloatArray = NDArray[np.float64]
MAD_TO_SIGMA = 1.4826
#: variance of the log of a squared, scaled MAD of n normal numbers is about this over n
_LOG_MAD2_VARIANCE = 5.44
#: no group counts more than this factor more, or less, than the typical one
_MOST = 25.0
#: a residual scale of rounding errors: nothing to tell apart
EXACT = 1e-9


@dataclass(frozen=True, slots=True)
class NoiseModel:
    """Variance of log error by (projection, b_q), relative to the typical one, whose weight is 1."""

    #: (projection, b_q) → variance over the typical variance
    ratio: Mapping[tuple[str, int], float] = field(default_factory=dict)
    #: standard deviation of log error of the typical group
    typical: float = math.nan
    #: standard deviation between repetitions that differ in their seed alone, and its degrees of freedom
    replicate_sd: float | None = None
    replicate_freedom: int = 0

    def weights(self, table: ObservationTable) -> FloatArray:
        """(m,) the given weights over the variance of each observation's group; 1 for a group not known."""
        projection = [table.matrices[i].projection for i in table.row.tolist()]
        ratio = [self.ratio.get((p, int(b)), 1.0) for p, b in zip(projection, table.bits.tolist(), strict=True)]
        return np.asarray(table.weight / np.array(ratio))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: standard deviations of log error."""
        known = math.isfinite(self.typical)
        return {
            "sd": {f"{p}@{b}": self.typical * math.sqrt(v) for (p, b), v in sorted(self.ratio.items())}
            if known
            else {},
            "typical_sd": self.typical if known else None,
            "replicate_sd": self.replicate_sd,
            "replicate_freedom": self.replicate_freedom,
        }


def replicates(table: ObservationTable) -> tuple[float | None, int]:
    """Pooled standard deviation of log error between repetitions of one (matrix, config), and its freedom."""
    key = np.stack([table.row, table.bits.astype(np.int64), table.rank], axis=1)
    _, cell = np.unique(key, axis=0, return_inverse=True)
    cell = cell.reshape(-1)
    n = np.bincount(cell)
    freedom = int((n - 1).sum())
    if not freedom:
        return None, 0
    mean = np.bincount(cell, weights=table.y) / n
    return float(np.sqrt(((table.y - mean[cell]) ** 2).sum() / freedom)), freedom


def estimate_noise(table: ObservationTable, residual: FloatArray, n_unknowns: int) -> NoiseModel:
    """Second step: variances of the residuals of a first fit, robust (MAD), shrunk to the typical one in log.

    A group's variance is at least that between repetitions, where there are at least five to tell it by: what a
    measurement scatters by itself cannot be less than zero's worth of a lucky fit.

    Args:
        residual: (m,) log(measured / predicted) of the first fit.
        n_unknowns: its scales and parameters.
    """
    standard = residual * np.sqrt(table.weight)
    share = max(1 - n_unknowns / len(standard), 1 / len(standard))
    typical = MAD_TO_SIGMA * float(np.median(np.abs(standard))) / math.sqrt(share)
    sd, freedom = replicates(table)
    if typical < EXACT:
        return NoiseModel(replicate_sd=sd, replicate_freedom=freedom)
    groups: dict[tuple[str, int], list[int]] = {}
    for i, (row, b) in enumerate(zip(table.row.tolist(), table.bits.tolist(), strict=True)):
        groups.setdefault((table.matrices[row].projection, int(b)), []).append(i)
    floor = sd if sd is not None and freedom >= 5 else 0.0
    spread = {
        key: MAD_TO_SIGMA * float(np.median(np.abs(standard[members]))) / math.sqrt(share)
        for key, members in groups.items()
    }
    log_ratio = {key: 2 * math.log(max(s, floor, typical / _MOST) / typical) for key, s in spread.items()}
    error = {key: _LOG_MAD2_VARIANCE / (len(members) * share) for key, members in groups.items()}
    shrunk = _shrink([log_ratio[k] for k in groups], [error[k] for k in groups])
    ratio = {key: min(max(math.exp(v), 1 / _MOST), _MOST) for key, v in zip(groups, shrunk, strict=True)}
    return NoiseModel(ratio, typical, sd, freedom)


def _shrink(values: Sequence[float], variances: Sequence[float]) -> list[float]:
    """Shrink to zero by the part of their scatter that their own errors explain (method of moments)."""
    x, v = np.array(values), np.array(variances)
    between = max(float((x**2 - v).mean()), 0.0)
    return [float(a) for a in x * between / (between + v)]
