"""Resampling: log a of every matrix in bootstrap draws of the sequences that all anchors were measured on.

All anchors of all matrices are measured on the same sequences, so they err together: a draw takes the same sequences
for all of them (Efron & Tibshirani 1993, ch. 8). What they share then cancels wherever matrices are compared.

Shapes: B draws, N sequences, A anchors of a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compress_core.matrix import MatrixKey

if TYPE_CHECKING:
    from compress_core.allocate.sensitivity import KLAnchor

DRAWS = 1000


def log_draws(
    groups: Mapping[MatrixKey, Sequence[KLAnchor]],
    floors: Mapping[MatrixKey, Sequence[float]],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[MatrixKey, NDArray[np.float64]]:
    """(B,) log a of each matrix, averaged over its anchors, in each draw; the same sequences for all in a draw.

    Args:
        groups: anchors with errors above 0.
        floors: nats to which a KL of each of these is raised.

    Returns:
        Nothing unless every anchor has its KL for each of the same two sequences or more.
    """
    counts = {
        0 if anchor.kl_per_sequence is None else len(anchor.kl_per_sequence) for g in groups.values() for anchor in g
    }
    if len(counts) != 1 or (n := counts.pop()) < 2:
        return {}
    weight_BN = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws) / n
    found = {}
    for key, group in groups.items():
        kl_AN = np.array([anchor.kl_per_sequence for anchor in group])
        kl_BA = np.maximum(weight_BN @ kl_AN.T, np.asarray(floors[key]))
        log_error = math.fsum(math.log(anchor.error) for anchor in group) / len(group)
        found[key] = np.log(kl_BA).mean(axis=1) - log_error
    return found
