"""GateThresholds: the plan's numbers, which a study may override."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from compress_core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GateThresholds:
    """Defaults are the plan's; those marked *ours* fill what it leaves open.

    Raises:
        ConfigError: a threshold is not a finite number, or negative.
    """

    #: phase 0: sensitivity of the most over the least sensitive layer, ×
    sensitivity_ratio: float = 3.0
    #: phase 0: PPL gain of manual over uniform, %
    manual_gain_percent: float = 2.0
    #: phase 1: largest over smallest error of one matrix over its configs, ×
    error_ratio: float = 10.0
    #: phase 1: typical factor between layers at the same config, × (ours: 10 % says "different")
    profile_factor: float = 1.1
    #: phase 2
    fit_r2: float = 0.7
    #: phase 2, when the non-parametric fallback is in use
    fallback_r2: float = 0.6
    #: phase 3: |bytes − target| / target, %
    bytes_tolerance_percent: float = 10.0
    #: phase 3, seconds
    allocator_seconds: float = 60.0
    #: phase 4: PPL gain of optimal over uniform, %
    optimal_gain_percent: float = 3.0
    #: phase 4: Spearman's rank correlation of predicted and realised KL over allocations of equal bytes (ours)
    rank_correlation: float = 0.9
    #: phase 4: largest loss of a downstream score, % of the score
    downstream_loss_percent: float = 2.0
    #: phase 4
    scaled_fit_r2: float = 0.6

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise ConfigError(f"gate threshold {f.name} must be a number of 0 or more, not {value!r}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> Self:
        """The defaults with some overridden, as read from YAML or JSON.

        Raises:
            ConfigError: an unknown name, or no number.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(map(str, set(values or {}) - known)):
            raise ConfigError(f"unknown gate threshold {unknown[0]!r}: the thresholds are {', '.join(sorted(known))}")
        return cls(**(values or {}))

    def to_dict(self) -> dict[str, float]:
        return asdict(self)
