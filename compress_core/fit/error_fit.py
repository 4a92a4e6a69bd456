"""ErrorFit: the one interface of every model of E_i(b, r)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from compress_core.fit.quality import CrossValidation, FitQuality
from compress_core.matrix import MatrixKey


@dataclass(frozen=True, slots=True)
class Parameter:
    """A fitted parameter; ``low``/``high`` is its 95 % interval. An infinite error means: not identified."""

    name: str
    value: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PhysicalCheck:
    """A sign that a parameter must have to make sense."""

    name: str
    passed: bool
    #: the sign is also sure: zero lies outside the 95 % interval
    sure: bool
    detail: str


@dataclass(frozen=True, eq=False)
class ErrorFit(ABC):
    """A model of the error of every matrix at every (b_q, rank), and how far to trust it."""

    #: "additive", "log_linear", "monotone"
    form: str
    #: empty for a non-parametric fit
    parameters: tuple[Parameter, ...]
    #: s_i; empty for a non-parametric fit
    scales: Mapping[MatrixKey, float]
    quality: FitQuality
    #: log(measured / predicted) in the order of the observations given; NaN where the error was zero
    residuals: NDArray[np.float64]
    n_observations: int
    #: observations left out because their error is exactly zero
    n_zero: int
    checks: tuple[PhysicalCheck, ...] = ()
    cross_validation: CrossValidation | None = None

    @abstractmethod
    def predict(self, matrix: MatrixKey, b_q: int, rank: int) -> float:
        """E_i(b_q, rank) ≥ 0.

        Raises:
            FitError: the fit knows nothing of this matrix, or does not reach this config.
        """

    @property
    def physical(self) -> bool:
        """True where every physical check passed."""
        return all(check.passed for check in self.checks)

    def parameter(self, name: str) -> Parameter:
        return next(p for p in self.parameters if p.name == name)

    def validated(self, result: CrossValidation | None) -> Self:
        """The same fit with its cross-validation attached."""
        return replace(self, cross_validation=result)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able summary without residuals; what is not finite becomes None."""

        def number(x: float) -> float | None:
            return x if np.isfinite(x) else None

        return {
            "form": self.form,
            "parameters": {
                p.name: {
                    "value": number(p.value),
                    "standard_error": number(p.standard_error),
                    "low": number(p.low),
                    "high": number(p.high),
                }
                for p in self.parameters
            },
            "scales": {str(key): scale for key, scale in self.scales.items()},
            "quality": self.quality.to_dict(),
            "cross_validation": None if self.cross_validation is None else self.cross_validation.to_dict(),
            "checks": [{"name": c.name, "passed": c.passed, "sure": c.sure, "detail": c.detail} for c in self.checks],
            "n_observations": self.n_observations,
            "n_zero": self.n_zero,
        }
