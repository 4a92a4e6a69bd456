"""Shapes of the error over (bits, rank): log E_i = log s_i + log g(b, r; θ). One class a form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
_LN2 = math.log(2)


class Shape(Protocol):
    """A parametric form: internal parameters θ for the solver, named parameters for people."""

    @property
    def form(self) -> str: ...

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the reported parameters."""

    @property
    def positive(self) -> tuple[str, ...]:
        """Parameters that must be positive to make sense."""

    @property
    def min_cells(self) -> int:
        """Different configs that must be measured."""

    @property
    def min_bits(self) -> int: ...

    @property
    def min_ranks(self) -> int: ...

    def starts(self) -> Sequence[tuple[float, ...]]:
        """Values of θ to start from."""

    def log_shape(self, theta: FloatArray, bits: FloatArray, log_rank: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(m,) log g and its (m, p) Jacobian in θ."""

    def named(self, theta: FloatArray) -> FloatArray:
        """The reported parameters."""

    def log_scale_shift(self, theta: FloatArray) -> float:
        """What turns the solver's log scale into log s_i of the reported parameters."""


@dataclass(frozen=True, slots=True)
class AdditiveShape:
    """The plan's g = α·2^(−β·b) + γ·(r+1)^(−δ), with α + γ = 1 so that the s_i are determined.

    Internally θ = (η, β, δ) and g ∝ exp(η − β·ln 2·(b − b₀)) + (r+1)^(−δ), with b₀ the centre of the measured bits,
    which keeps η and β nearly uncorrelated; then α/γ = exp(η + β·ln 2·b₀).
    """

    centre: float
    form: str = "additive"
    names: tuple[str, ...] = ("alpha", "beta", "gamma", "delta")
    positive: tuple[str, ...] = ("beta", "delta")
    min_cells: int = 4
    min_bits: int = 2
    min_ranks: int = 2

    def starts(self) -> Sequence[tuple[float, ...]]:
        return [(eta, beta, delta) for eta in (-2.0, 0.0, 2.0, 4.0) for beta, delta in ((1.8, 0.3), (1.0, 1.0))]

    def log_shape(self, theta: FloatArray, bits: FloatArray, log_rank: FloatArray) -> tuple[FloatArray, FloatArray]:
        eta, beta, delta = theta
        offset = bits - self.centre
        by_bits = eta - beta * _LN2 * offset
        by_rank = -delta * log_rank
        log_g = np.logaddexp(by_bits, by_rank)
        share = np.exp(by_bits - log_g)
        return log_g, np.stack([share, -share * _LN2 * offset, -(1 - share) * log_rank], axis=1)

    def named(self, theta: FloatArray) -> FloatArray:
        eta, beta, delta = theta
        alpha = 1 / (1 + math.exp(-max(min(eta + beta * _LN2 * self.centre, 700.0), -700.0)))
        return np.array([alpha, beta, 1 - alpha, delta])

    def log_scale_shift(self, theta: FloatArray) -> float:
        return float(np.logaddexp(theta[0] + theta[1] * _LN2 * self.centre, 0.0))


@dataclass(frozen=True, slots=True)
class LogLinearShape:
    """The rival g = 2^(−β·b)·(r+1)^(−δ): rank helps by the same factor at any bits. Two parameters."""

    form: str = "log_linear"
    names: tuple[str, ...] = ("beta", "delta")
    positive: tuple[str, ...] = ("beta", "delta")
    min_cells: int = 3
    min_bits: int = 2
    min_ranks: int = 2

    def starts(self) -> Sequence[tuple[float, ...]]:
        return [(1.5, 0.3)]

    def log_shape(self, theta: FloatArray, bits: FloatArray, log_rank: FloatArray) -> tuple[FloatArray, FloatArray]:
        jacobian = np.stack([-_LN2 * bits, -log_rank], axis=1)
        return jacobian @ theta, jacobian

    def named(self, theta: FloatArray) -> FloatArray:
        return np.asarray(theta)

    def log_scale_shift(self, theta: FloatArray) -> float:
        return 0.0
