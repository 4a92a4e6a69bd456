"""Uniform allocations: one config for every matrix. The baseline that every other allocation has to beat."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from compress_core.allocate.allocation import Allocation, allocation_from_choice
from compress_core.allocate.problem import AllocationProblem
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError, InfeasibleBudget
from compress_core.matrix import MatrixKey


@dataclass(frozen=True, slots=True)
class UniformCandidate:
    """What one config costs when every matrix takes it."""

    config: CompressionConfig
    total_bytes: int
    objective: float
    #: matrices too small for the rank, with the rank they take instead
    clamped: tuple[tuple[MatrixKey, int], ...]


def uniform_candidates(problem: AllocationProblem) -> tuple[UniformCandidate, ...]:
    """Every config of the menu that is available for every matrix, by rising bytes."""
    table = problem.objective_table
    limits = [(spec.key, min(spec.out_features, spec.in_features)) for spec in problem.specs]
    found = []
    for j, config in enumerate(problem.menu):
        if not np.isfinite(table[:, j]).all():
            continue
        clamped = tuple((key, limit) for key, limit in limits if limit < config.rank)
        found.append(UniformCandidate(config, int(problem.nbytes[:, j].sum()), math.fsum(table[:, j]), clamped))
    return tuple(sorted(found, key=lambda c: (c.total_bytes, c.objective)))


def uniform_allocation(
    problem: AllocationProblem, config: CompressionConfig, *, budget_bytes: int | None = None
) -> Allocation:
    """Every matrix at one config of the menu, its rank clamped where the matrix is small.

    Raises:
        ConfigError: the config is not on the menu, or not available for some matrix.
    """
    column = problem.column_of(config)
    return allocation_from_choice(problem, [column] * len(problem.specs), kind="uniform", budget_bytes=budget_bytes)


def best_uniform(problem: AllocationProblem, budget_bytes: int) -> Allocation:
    """The uniform allocation of least objective within the budget; of equal ones the smallest.

    Raises:
        ConfigError: no config is available for every matrix.
        InfeasibleBudget: none of them fits.
    """
    candidates = uniform_candidates(problem)
    if not candidates:
        raise ConfigError("no config is available for every matrix, so there is no uniform allocation to compare with")
    fitting = [c for c in candidates if c.total_bytes <= budget_bytes]
    if not fitting:
        smallest = candidates[0]
        raise InfeasibleBudget(
            f"no uniform allocation fits {budget_bytes:,} bytes: the smallest, {smallest.config}, "
            f"takes {smallest.total_bytes:,} bytes",
            smallest_bytes=smallest.total_bytes,
        )
    best = min(fitting, key=lambda c: (c.objective, c.total_bytes))
    return uniform_allocation(problem, best.config, budget_bytes=budget_bytes)
