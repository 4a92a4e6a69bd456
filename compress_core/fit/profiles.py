"""Error profiles: how the error of a matrix moves over configs, and whether layers differ."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress_core.errors import FitError
from compress_core.fit.observation import ErrorObservation, ObservationTable
from compress_core.matrix import MatrixKey


@dataclass(frozen=True, eq=False, slots=True)
class ErrorProfiles:
    """Log errors of each matrix over the configs, and what they say.

    Columns are the configs (b_q, rank) that at least one matrix has; NaN where a matrix has not.
    """

    matrices: tuple[MatrixKey, ...]
    configs: tuple[tuple[int, int], ...]
    #: (n, k) log error
    log_error: NDArray[np.float64]

    @property
    def profiles(self) -> NDArray[np.float64]:
        """(n, k) log error minus the matrix's mean over its configs: the shape without the level."""
        return self.log_error - np.nanmean(self.log_error, axis=1, keepdims=True)

    @property
    def config_ratio(self) -> NDArray[np.float64]:
        """(n,) largest over smallest error of each matrix over its configs (the plan's > 10×)."""
        return np.exp(np.nanmax(self.log_error, axis=1) - np.nanmin(self.log_error, axis=1))

    def layer_deviation(self, values: NDArray[np.float64]) -> float:
        """exp(RMS deviation of ``values`` (n, k) from the mean over layers, per projection and config).

        1 = the layers are the same; 1.2 = one config's value typically differs by 20 % between layers. Uses the
        unbiased variance, over projections with at least two layers.

        Raises:
            FitError: no projection has two layers with a config in common.
        """
        squares, freedom = 0.0, 0
        projection = np.array([key.projection for key in self.matrices])
        for name in np.unique(projection):
            block = values[projection == name]
            known = np.isfinite(block)
            n = known.sum(axis=0)
            use = n > 1
            if not use.any():
                continue
            block, n = np.where(known, block, 0.0)[:, use], n[use]
            mean = block.sum(axis=0) / n
            squares += float((np.where(known[:, use], block - mean, 0.0) ** 2).sum())
            freedom += int((n - 1).sum())
        if not freedom:
            raise FitError("layers cannot be compared: no projection has two layers measured at the same config")
        return math.exp(math.sqrt(squares / freedom))

    @property
    def level_and_shape_factor(self) -> float:
        """Typical factor by which one config's error differs between layers of a projection."""
        return self.layer_deviation(self.log_error)

    @property
    def shape_factor(self) -> float:
        """The same for the profiles: what a scale per matrix cannot explain."""
        return self.layer_deviation(self.profiles)

    def layer_ratio(self) -> NDArray[np.float64]:
        """(k,) per config the largest over the smallest error between layers, largest over projections."""
        projection = np.array([key.projection for key in self.matrices])
        ratios = []
        for name in np.unique(projection):
            block = self.log_error[projection == name]
            known = np.isfinite(block)
            top = np.where(known, block, -np.inf).max(axis=0)
            bottom = np.where(known, block, np.inf).min(axis=0)
            ratios.append(np.where(known.any(axis=0), top - bottom, 0.0))
        return np.exp(np.max(ratios, axis=0))


def error_profiles(observations: Iterable[ErrorObservation]) -> ErrorProfiles:
    """Arrange measurements as profiles; a cell measured more than once is averaged in log.

    Raises:
        FitError: no measurement with a positive error.
        NonFiniteValues: an error is NaN, infinite or negative.
    """
    table = ObservationTable.collect(observations)
    keys = list(zip(table.bits.astype(int).tolist(), table.rank.tolist(), strict=True))
    configs = tuple(sorted(set(keys)))
    column = {config: j for j, config in enumerate(configs)}
    at = np.array([column[key] for key in keys])
    total = np.zeros((len(table.matrices), len(configs)))
    count = np.zeros(total.shape)
    np.add.at(total, (table.row, at), table.y)
    np.add.at(count, (table.row, at), 1)
    log_error = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return ErrorProfiles(table.matrices, configs, log_error)
