"""A baseline's allocation, with what it loses against the optimum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compress_core.allocate.allocation import Allocation, allocation_from_choice
from compress_core.allocate.baselines.discretised_dp import discretised_dp_choice
from compress_core.allocate.baselines.greedy import greedy_choice
from compress_core.allocate.baselines.minimax import minimax_choice
from compress_core.allocate.budget import Budget
from compress_core.allocate.optimal import optimal_allocation
from compress_core.allocate.problem import AllocationProblem
from compress_core.allocate.solution import AllocationSolution
from compress_core.errors import ConfigError

#: (errors (n, k), nbytes (n, k), budget) -> (n,) columns
Chooser = Callable[[ArrayLike, ArrayLike, int], NDArray[np.int64]]

#: by the name that an allocation's ``kind`` has
BASELINES: Mapping[str, Chooser] = MappingProxyType(
    {"greedy": greedy_choice, "minimax": minimax_choice, "discretised_dp": discretised_dp_choice}
)


@dataclass(frozen=True, eq=False, slots=True)
class Baseline:
    """A baseline's choice beside the exact solution at the same budget."""

    allocation: Allocation
    optimum: AllocationSolution

    @property
    def loss(self) -> float:
        """Objective above the optimum's, relative to it; 0 where both are 0, inf where only the optimum's is 0."""
        above = self.allocation.objective - self.optimum.objective
        if self.optimum.objective == 0:
            return 0.0 if above <= 0 else float("inf")
        return above / abs(self.optimum.objective)


def baseline_allocation(problem: AllocationProblem, budget: Budget | int, kind: str) -> Baseline:
    """Allocate by a baseline's name: greedy, minimax or discretised_dp; never over the budget.

    Raises:
        ConfigError: there is no baseline of that name; a matrix has no available config.
        InfeasibleBudget: as ``optimal_allocation``.
    """
    if kind not in BASELINES:
        raise ConfigError(f"no baseline {kind!r}: choose out of {', '.join(BASELINES)}")
    solution = optimal_allocation(problem, budget).solution
    assert solution is not None
    choice = BASELINES[kind](problem.objective_table, problem.nbytes, solution.budget)
    return Baseline(allocation_from_choice(problem, choice, kind=kind, budget_bytes=solution.budget), solution)
