"""SensitivityResult: nats of KL that one change of one matrix costs, and the error that the change is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from compress_core.matrix import MatrixKey


class Anchor(Protocol):
    """What was done to the matrix: a ``CompressionConfig``, ``Noise`` or ``Incumbent``."""

    @property
    def config_hash(self) -> str:
        """Identifies it."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields."""


@dataclass(frozen=True, slots=True)
class SensitivityResult:
    """Of one matrix at one anchor."""

    key: MatrixKey
    #: a config has its rank cut to what the matrix can have
    anchor: Anchor
    #: nats a token, mean over each sequence's positions; negative where a difference of two KLs is
    kl_per_sequence: tuple[float, ...]
    #: of the anchor in this matrix: calibration_weighted_error; of noise, normalized_mse
    error: float
    #: "kl_anchor", "fisher_diagonal", "fisher_output", "higgs" or "reanchored"
    method: str

    @property
    def n_sequences(self) -> int:
        return len(self.kl_per_sequence)

    @property
    def kl_mean(self) -> float:
        """Nats a token."""
        return sum(self.kl_per_sequence) / self.n_sequences

    @property
    def kl_standard_error(self) -> float:
        """Standard error of :attr:`kl_mean` over sequences; infinite with one sequence."""
        n, mean = self.n_sequences, self.kl_mean
        if n < 2:
            return math.inf
        return math.sqrt(sum((kl - mean) ** 2 for kl in self.kl_per_sequence) / (n - 1) / n)

    @property
    def nats_per_error(self) -> float:
        """a = KL / error: the sensitivity. 0 where the anchor changed nothing."""
        return self.kl_mean / self.error if self.error > 0 else 0.0
