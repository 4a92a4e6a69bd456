"""Noise of the measurements: the variance of log error per projection type and bits, as residuals show it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress_core.fit.observation import ObservationTable

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
MAD_TO_SIGMA = 1.4826
#: variance of the log of a squared, scaled MAD of n normal numbers is about this over n
_LOG_MAD2_VARIANCE = 5.44
#: no group counts more than this factor more, or less, than the typical one
_MOST = 25.0
#: a residual scale of rounding errors: nothing to tell apart
EXACT = 1e-8


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
    """Second step: variances of the residuals of a first fit, robust (MAD), partially pooled in log.

    A group's log variance is that of its projection type plus that of its bits plus its own, each shrunk to zero by its
    error. It is at least the variance between repetitions, where there are five or more to tell it by: residuals that
    are smaller than that are luck.

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
    bits, b = np.unique(table.bits.astype(np.int64), return_inverse=True)
    types, t = np.unique([table.matrices[row].projection for row in table.row.tolist()], return_inverse=True)
    floor = max(sd if sd is not None and freedom >= 5 else 0.0, typical / _MOST)
    effect = _LogVariances(standard / typical, share, floor / typical)
    total = np.zeros(len(standard))
    for group in (t, b, t * len(bits) + b):
        total += effect.of(group, total)
    total = np.clip(total, -math.log(_MOST), math.log(_MOST))
    ratio = {
        (str(types[i]), int(bits[j])): float(math.exp(total[(t == i) & (b == j)][0]))
        for i, j in sorted(set(zip(t.tolist(), b.tolist(), strict=True)))
    }
    return NoiseModel(ratio, typical, sd, freedom)


@dataclass(frozen=True, eq=False, slots=True)
class _LogVariances:
    """Log variances of groups of standardised residuals, shrunk to what is known of them already."""

    standard: FloatArray
    #: residual degrees of freedom a measurement
    share: float
    least: float

    def of(self, group: IntArray, known: FloatArray) -> FloatArray:
        """(m,) log variance of each one's group beyond ``known`` (m,), shrunk to zero by the method of moments."""
        names, at = np.unique(group, return_inverse=True)
        found, variance = np.zeros(len(names)), np.zeros(len(names))
        for g in range(len(names)):
            members = at == g
            scale = MAD_TO_SIGMA * float(np.median(np.abs(self.standard[members]) / np.exp(known[members] / 2)))
            least = self.least / math.exp(float(known[members].mean()) / 2)
            found[g] = 2 * math.log(max(scale / math.sqrt(self.share), least))
            variance[g] = _LOG_MAD2_VARIANCE / (members.sum() * self.share)
        between = max(float((found**2 - variance).mean()), 0.0)
        return np.asarray((found * between / (between + variance))[at])
