"""Sensitivities by class of config: those with a low-rank part are judged by anchors that have one, the others by
anchors that have none.

Nats per unit of error hardly depend on the bits, but they do depend on whether there is an L·R. Softmax does not see an
error that is the same for every key, such as what the mean of the inputs makes of D; rank-0 configs of q and k err much
in that direction at no cost, and just this is what L·R takes away first, so what error is left then costs more. One
average over both classes values one of them wrongly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compress_core.allocate.sensitivity import (
    ALL_CELLS,
    LOW_RANK,
    RANK0,
    KLAnchor,
    Sensitivity,
    class_sensitivities,
)
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError
from compress_core.matrix import MatrixKey, MatrixSpec


@dataclass(frozen=True, eq=False, slots=True)
class ClassedSensitivities:
    """a_i of every matrix for configs without and with a low-rank part, each shrunk toward its own type's mean."""

    rank0: Mapping[MatrixKey, Sensitivity]
    low_rank: Mapping[MatrixKey, Sensitivity]

    def of(self, config: CompressionConfig) -> Mapping[MatrixKey, Sensitivity]:
        """Those that speak of a config."""
        return self.low_rank if config.rank else self.rank0

    def weights(self, specs: Sequence[MatrixSpec], menu: Sequence[CompressionConfig]) -> NDArray[np.float64]:
        """(n, k) a_ij, as ``AllocationProblem.weights`` takes them.

        Raises:
            ConfigError: a matrix has no sensitivity.
        """
        for spec in specs:
            if spec.key not in self.rank0 or spec.key not in self.low_rank:
                raise ConfigError(f"no sensitivity for matrix {spec.key}: measure it, or allocate without weights")
        return np.array([[self.of(config)[spec.key].value for config in menu] for spec in specs])


def estimate_by_class(anchors: Iterable[tuple[KLAnchor, int]], *, shrink: bool = True) -> ClassedSensitivities:
    """``estimate_sensitivities`` of each class by itself.

    A class that no anchor is of takes all anchors; so does a matrix that has none of that class (too small for a rank,
    say).

    Args:
        anchors: each with the rank of its config.

    Raises:
        FitError, NonFiniteValues: as ``estimate_sensitivities``.
    """
    found = class_sensitivities((replace(anchor, low_rank=rank > 0) for anchor, rank in anchors), shrink=shrink)
    everything = found[ALL_CELLS]
    return ClassedSensitivities(rank0=everything | found.get(RANK0, {}), low_rank=everything | found.get(LOW_RANK, {}))
