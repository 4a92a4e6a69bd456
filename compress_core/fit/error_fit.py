"""ErrorFit: the one interface of every model of E_i(b, r)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
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
    #: None for the common one, else the projection type whose own it is
    projection: str | None = None


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

    #: "additive", "multiplicative", "log_linear", "monotone"
    form: str
    #: the common ones first, then each projection type's own; empty for a non-parametric fit
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
    #: leaving each config out
    cross_validation: CrossValidation | None = None
    #: leaving each layer out but for one anchor cell a matrix
    layer_validation: CrossValidation | None = None
    #: JSON-able: noise, pooling, what stands for ρ
    details: Mapping[str, Any] = field(default_factory=dict)

    @abstractmethod
    def predict(self, matrix: MatrixKey, b_q: int, rank: int) -> float:
        """E_i(b_q, rank) ≥ 0.

        Raises:
            FitError: the fit knows nothing of this matrix, or does not reach this config.
        """

    @property
    @abstractmethod
    def n_parameters(self) -> int | None:
        """Free parameters beside the scales; None for a non-parametric fit."""

    @property
    def physical(self) -> bool:
        """True where every physical check passed."""
        return all(check.passed for check in self.checks)

    def parameter(self, name: str, projection: str | None = None) -> Parameter:
        """The common parameter of that name, or a projection type's."""
        return next(p for p in self.parameters if (p.name, p.projection) == (name, projection))

    def validated(self, by_config: CrossValidation | None, by_layer: CrossValidation | None) -> Self:
        """The same fit with its cross-validations attached."""
        return replace(self, cross_validation=by_config, layer_validation=by_layer)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able summary without residuals; what is not finite becomes None."""

        def number(x: float) -> float | None:
            return x if np.isfinite(x) else None

        def named(parameters: Iterable[Parameter]) -> dict[str, Any]:
            return {
                p.name: {
                    "value": number(p.value),
                    "standard_error": number(p.standard_error),
                    "low": number(p.low),
                    "high": number(p.high),
                }
                for p in parameters
            }

        types = sorted({p.projection for p in self.parameters if p.projection is not None})
        return {
            "form": self.form,
            "parameters": named(p for p in self.parameters if p.projection is None),
            "by_projection": {t: named(p for p in self.parameters if p.projection == t) for t in types},
            "scales": {str(key): scale for key, scale in self.scales.items()},
            "quality": self.quality.to_dict(),
            "cross_validation": None if self.cross_validation is None else self.cross_validation.to_dict(),
            "layer_validation": None if self.layer_validation is None else self.layer_validation.to_dict(),
            "checks": [{"name": c.name, "passed": c.passed, "sure": c.sure, "detail": c.detail} for c in self.checks],
            "n_observations": self.n_observations,
            "n_zero": self.n_zero,
            "details": dict(self.details),
        }
