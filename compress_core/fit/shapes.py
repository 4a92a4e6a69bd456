"""Shapes of the error over (bits, rank): log E_i = log s_i + log g(b, r; θ). One class a form.

Every row has a θ of its own, since projection types differ; the solver gives the rows of a type the same.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
_LN2 = math.log(2)
#: a term of full rank leaves what its own rounding leaves, which a spectrum does not say: at least this share
LEAST_LEFT = 1e-3


@dataclass(frozen=True, eq=False, slots=True)
class ShapeCells:
    """Where a shape is evaluated: three columns of one length m."""

    bits: FloatArray
    rank: FloatArray
    #: ρ of the matrix's residual spectrum; None for the shapes that do without
    captured: FloatArray | None = None


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

    def prior(self) -> tuple[FloatArray, FloatArray]:
        """(p,) mean and precision of a weak prior of the common θ, in nats; precision 0 = none."""

    def log_shape(self, theta: FloatArray, cells: ShapeCells) -> tuple[FloatArray, FloatArray]:
        """(m,) log g and its (m, p) Jacobian in θ, which is (p,) or (m, p)."""

    def linked(self, theta: FloatArray) -> FloatArray:
        """The reported parameters on scales without bounds, on which their intervals are symmetric."""

    def unlinked(self, values: FloatArray) -> FloatArray:
        """From those scales to the reported parameters; rises in each."""

    def log_scale_shift(self, theta: FloatArray) -> float:
        """What turns the solver's log scale into log s_i of the reported parameters."""


def _none(size: int) -> tuple[FloatArray, FloatArray]:
    return np.zeros(size), np.zeros(size)


def _logistic(x: float | np.float64) -> float:
    return 1 / (1 + math.exp(-max(min(float(x), 700.0), -700.0)))


@dataclass(frozen=True, slots=True)
class AdditiveShape:
    """The plan's g = α·2^(−β·b) + γ·(r+1)^(−δ), with α + γ = 1 so that the s_i are determined.

    Internally θ = (κ, β, δ) and g ∝ exp(κ − β·ln 2·(b − b₀)) + (r+1)^(−δ), with b₀ the centre of the measured bits,
    which keeps κ and β nearly uncorrelated; then α/γ = exp(κ + β·ln 2·b₀).
    """

    centre: float
    form: str = "additive"
    names: tuple[str, ...] = ("alpha", "beta", "gamma", "delta")
    positive: tuple[str, ...] = ("beta", "delta")
    min_cells: int = 4
    min_bits: int = 2
    min_ranks: int = 2

    def starts(self) -> Sequence[tuple[float, ...]]:
        return [(kappa, beta, delta) for kappa in (-2.0, 0.0, 2.0, 4.0) for beta, delta in ((1.8, 0.3), (1.0, 1.0))]

    def prior(self) -> tuple[FloatArray, FloatArray]:
        # far wider than any law seen: where one term drowns in the other, its exponent must not run away
        return np.array([0.0, 1.5, 0.5]), 1 / np.array([5.0, 3.0, 2.0]) ** 2

    def log_shape(self, theta: FloatArray, cells: ShapeCells) -> tuple[FloatArray, FloatArray]:
        kappa, beta, delta = theta[..., 0], theta[..., 1], theta[..., 2]
        offset, log_rank = cells.bits - self.centre, np.log1p(cells.rank)
        by_bits = kappa - beta * _LN2 * offset
        by_rank = -delta * log_rank
        log_g = np.logaddexp(by_bits, by_rank)
        share = np.exp(by_bits - log_g)
        return log_g, np.stack([share, -share * _LN2 * offset, -(1 - share) * log_rank], axis=1)

    def linked(self, theta: FloatArray) -> FloatArray:
        kappa, beta, delta = theta
        logit = kappa + beta * _LN2 * self.centre
        return np.array([logit, beta, -logit, delta])

    def unlinked(self, values: FloatArray) -> FloatArray:
        alpha, beta, gamma, delta = values
        return np.array([_logistic(alpha), beta, _logistic(gamma), delta])

    def log_scale_shift(self, theta: FloatArray) -> float:
        return float(np.logaddexp(theta[0] + theta[1] * _LN2 * self.centre, 0.0))


class LinearShape(ABC):
    """A shape whose log g is a weighted sum of two columns: its θ are the parameters that people know."""

    def prior(self) -> tuple[FloatArray, FloatArray]:
        return _none(2)

    @abstractmethod
    def columns(self, cells: ShapeCells) -> FloatArray:
        """(m, 2) ∂ log g / ∂θ, the same at every θ."""

    def log_shape(self, theta: FloatArray, cells: ShapeCells) -> tuple[FloatArray, FloatArray]:
        jacobian = self.columns(cells)
        return (jacobian * theta).sum(axis=1), jacobian

    def linked(self, theta: FloatArray) -> FloatArray:
        return np.asarray(theta)

    def unlinked(self, values: FloatArray) -> FloatArray:
        return np.asarray(values)

    def log_scale_shift(self, theta: FloatArray) -> float:
        return 0.0


@dataclass(frozen=True, slots=True)
class LogLinearShape(LinearShape):
    """The rival g = 2^(−β·b)·(r+1)^(−δ): rank helps by the same factor at any bits. Two parameters."""

    form: str = "log_linear"
    names: tuple[str, ...] = ("beta", "delta")
    positive: tuple[str, ...] = ("beta", "delta")
    min_cells: int = 3
    min_bits: int = 2
    min_ranks: int = 2

    def starts(self) -> Sequence[tuple[float, ...]]:
        return [(1.5, 0.3)]

    def columns(self, cells: ShapeCells) -> FloatArray:
        return np.stack([-_LN2 * cells.bits, -np.log1p(cells.rank)], axis=1)


@dataclass(frozen=True, slots=True)
class SpectralShape(LinearShape):
    """g = 2^(−β·b)·(1 − ρ_i(r))^η: a low-rank term takes its share of the matrix's own residual spectrum ρ_i.

    η = 1 is the law of a term that captures what the spectrum promises and leaves Q as it is. Factors of few bits
    capture less (η < 1); Q, relieved of what L·R carries, rounds the rest better (η > 1).
    """

    form: str = "multiplicative"
    names: tuple[str, ...] = ("beta", "eta")
    positive: tuple[str, ...] = ("beta", "eta")
    min_cells: int = 3
    min_bits: int = 2
    min_ranks: int = 2

    def starts(self) -> Sequence[tuple[float, ...]]:
        return [(1.5, 1.0)]

    def columns(self, cells: ShapeCells) -> FloatArray:
        if cells.captured is None:
            raise ValueError("the spectral shape needs the captured share of every cell")
        left = np.log(np.maximum(1 - cells.captured, LEAST_LEFT))
        return np.stack([-_LN2 * cells.bits, left], axis=1)


@dataclass(frozen=True, slots=True)
class PooledRankShape:
    """g = 2^(−β·b)·(1 − ρ(r)) with one ρ(r) = 1 − exp(−γ·(r/R)^δ) a type, where no residual spectrum is recorded.

    R is the largest rank measured: there a low-rank term takes γ off log error, at other ranks as its power δ says.
    Internally θ = (β, γ, ln δ); few ranks say little of δ, so it has a weak prior below 1.
    """

    largest: float
    form: str = "multiplicative"
    names: tuple[str, ...] = ("beta", "gamma", "delta")
    positive: tuple[str, ...] = ("beta", "gamma", "delta")
    min_cells: int = 4
    min_bits: int = 2
    min_ranks: int = 3

    @classmethod
    def over(cls, rank: FloatArray) -> PooledRankShape:
        """For measurements at these ranks."""
        return cls(max(float(rank.max()), 1.0))

    def starts(self) -> Sequence[tuple[float, ...]]:
        return [(1.5, 0.5, -0.3)]

    def prior(self) -> tuple[FloatArray, FloatArray]:
        return np.array([0.0, 0.0, -0.3]), np.array([0.0, 0.0, 1.0])

    def log_shape(self, theta: FloatArray, cells: ShapeCells) -> tuple[FloatArray, FloatArray]:
        beta, gamma = theta[..., 0], theta[..., 1]
        # beyond these powers a curve is a step at the resolution of any grid of ranks
        delta = np.exp(np.clip(theta[..., 2], -4.0, 3.0))
        log_x = np.log(np.maximum(cells.rank, 1e-300) / self.largest)
        power = np.where(cells.rank > 0, np.exp(np.clip(delta * log_x, -700, 700)), 0.0)
        by_delta = np.where(cells.rank > 0, -gamma * power * delta * log_x, 0.0)
        return -beta * _LN2 * cells.bits - gamma * power, np.stack([-_LN2 * cells.bits, -power, by_delta], axis=1)

    def linked(self, theta: FloatArray) -> FloatArray:
        return np.asarray(theta)

    def unlinked(self, values: FloatArray) -> FloatArray:
        return np.array([values[0], values[1], math.exp(min(float(values[2]), 700.0))])

    def log_scale_shift(self, theta: FloatArray) -> float:
        return 0.0
