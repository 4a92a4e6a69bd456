"""Spread: how much the layers' sensitivities differ, with an interval that noise alone does not widen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress_core.allocate.sensitivity import KLAnchor, Sensitivity, bootstrap_logs
from compress_core.errors import FitError
from compress_core.matrix import MatrixKey


@dataclass(frozen=True, slots=True)
class Spread:
    """Largest over smallest value of a group, with a 95 % interval."""

    ratio: float
    low: float
    high: float


def layer_spread(
    sensitivities: Mapping[MatrixKey, Sensitivity],
    anchors: Iterable[KLAnchor] = (),
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Spread:
    """How much the layers' sensitivities differ: max/min over layers of Σ_i a_i, with a bootstrap interval.

    Noise alone makes a maximum larger and a minimum smaller, so the naive interval flatters. The draws add the noise
    of each log a_i once more; the basic (reflected) bootstrap interval 2·R − quantile(R*) of the log ratio R then takes
    that inflation off again. Shrunk values have lost some of it already, so the interval reaches up to the quantile of
    R* itself where that is higher: its low end errs on the side of layers that are alike. That end is at least 1.

    Args:
        anchors: that the sensitivities come from. Where these have their KL for each sequence, the noise of a draw is
            that of resampled sequences, the same for all matrices: what all layers share cancels. What else a log a_i
            is uncertain by (its anchors disagree, it leans on its type), and all of it without anchors, is drawn for
            each matrix on its own.

    Raises:
        FitError: fewer than two layers.
    """
    keys = sorted(sensitivities)
    layers = sorted({k.layer_idx for k in keys})
    if len(layers) < 2:
        raise FitError("the spread of sensitivities over layers needs at least two layers")
    row = np.array([layers.index(k.layer_idx) for k in keys])
    log_value = np.log([sensitivities[k].value for k in keys])
    log_se = np.array([sensitivities[k].log_se for k in keys])

    def log_ratio(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = np.stack([np.exp(logs[:, row == i]).sum(axis=1) for i in range(len(layers))], axis=1)
        return np.log(sums.max(axis=1) / sums.min(axis=1))

    point = float(log_ratio(log_value[None, :])[0])
    shared_BM = _shared_noise(keys, sensitivities, anchors, draws, seed)
    own_se = np.sqrt(np.maximum(0.0, log_se**2 - shared_BM.var(axis=0)))
    noise = np.random.default_rng(seed).normal(size=(draws, len(keys)))
    repeated = log_ratio(log_value + shared_BM + noise * own_se)
    upper, lower = np.quantile(repeated, [0.975, 0.025])
    low = max(0.0, 2 * point - float(upper))
    high = max(point, 2 * point - float(lower), float(upper))
    return Spread(math.exp(point), math.exp(low), math.exp(high))


def _shared_noise(
    keys: list[MatrixKey],
    sensitivities: Mapping[MatrixKey, Sensitivity],
    anchors: Iterable[KLAnchor],
    draws: int,
    seed: int,
) -> NDArray[np.float64]:
    """(draws, matrices) noise of log a_i from resampled sequences, shrunk as the estimates are; 0 where unknown."""
    of_key = bootstrap_logs(anchors, draws=draws, seed=seed)
    noise_BM = np.zeros((draws, len(keys)))
    if not of_key:
        return noise_BM
    own_M = np.array([sensitivities[key].own_weight for key in keys])
    raw_BM = np.stack([of_key[key] - of_key[key].mean() if key in of_key else np.zeros(draws) for key in keys], axis=1)
    known_M = np.array([key in of_key for key in keys])
    for projection in {key.projection for key in keys}:
        of_type = np.array([key.projection == projection for key in keys])
        members = of_type & known_M
        if not members.any():
            continue
        # τ²/(τ² + v) is in proportion to 1/(τ² + v), the precision that the type's mean weighs its matrices with
        weight = own_M[members] if own_M[members].any() else np.ones(int(members.sum()))
        mean_B = raw_BM[:, members] @ (weight / weight.sum())
        noise_BM[:, of_type] = own_M[of_type] * raw_BM[:, of_type] + (1 - own_M[of_type]) * mean_B[:, None]
    return noise_BM
