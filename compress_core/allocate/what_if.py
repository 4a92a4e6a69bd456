"""WhatIf: what a pin, a megabyte or another choice would cost, each solved again exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compress_core.allocate.constrained import ConstrainedTable, constrained
from compress_core.allocate.constrained_solver import bound_of, second_constrained, solve_constrained
from compress_core.allocate.constraints import Constraints, hash_of
from compress_core.allocate.merged import MergedTable
from compress_core.allocate.problem import AllocationProblem
from compress_core.allocate.set_bound import SetTable
from compress_core.allocate.solution import AllocationSolution
from compress_core.allocate.solver import WORK_LIMIT
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError
from compress_core.matrix import MatrixKey


@dataclass(frozen=True, eq=False, slots=True)
class Price:
    """Another question's answer beside the first: the change of the objective, and how sure it is."""

    #: (n,) the menu's column of every matrix
    choice: NDArray[np.int64]
    objective: float
    total_bytes: int
    #: objective − the first solution's, in nats where the weights are
    difference: float
    #: the true difference of the two optima lies between these; they meet, up to rounding, where ``proven``
    at_least: float
    at_most: float
    #: both answers are proven optimal
    proven: bool
    #: matrices whose config is another
    changed: tuple[MatrixKey, ...]


@dataclass(frozen=True, slots=True)
class Regret:
    """What a matrix would lose by not having its config, as the bound alone proves it."""

    key: MatrixKey
    #: the config that is cheapest at the shadow price among the others; None where the matrix has no other
    runner_up: CompressionConfig | None
    #: a·ε + λ·bytes of the runner-up above the best of the matrix (with all that must agree with it); inf without one
    reduced_cost: float
    #: no allocation in which the matrix has another config is better than the chosen one plus this
    at_least: float


class WhatIf:
    """A solved allocation problem and questions about it.

    Args:
        budget: bytes for the matrices.
        solution: of the same problem, budget and constraints; solved here where it is not given.

    Raises:
        InfeasibleBudget, ConfigError: as ``optimal_allocation``.
    """

    def __init__(
        self,
        problem: AllocationProblem,
        budget: int,
        constraints: Constraints | None = None,
        *,
        solution: AllocationSolution | None = None,
        work_limit: int = WORK_LIMIT,
    ) -> None:
        self.table: ConstrainedTable = constrained(problem, constraints)
        self.budget = budget
        self.work_limit = work_limit
        self._merged = None if self.table.max_configs else self.table.merged()
        self.solution = solution or self._solve(self.table, budget, self._merged)

    @property
    def shadow_price_per_mb(self) -> float:
        """Objective saved per further 10⁶ bytes at the margin."""
        return self.solution.multiplier * 1e6

    def pin(self, key: MatrixKey, config: CompressionConfig) -> Price:
        """The price of giving a matrix this config of the menu; its group, if it has one, follows.

        Raises:
            ConfigError: no such matrix, or the constraints leave it no such config.
            InfeasibleBudget: with it the smallest allocation no longer fits.
        """
        row = self._row(key)
        spec = self.table.problem.specs[row]
        columns = self._columns_of(row, config.clamped(spec.out_features, spec.in_features))
        return self._solved_with(row, columns, f"matrix {key} cannot take {config}")

    def other_than_chosen(self, key: MatrixKey) -> Price:
        """The price of not giving a matrix the config that it has: its exact regret.

        Raises:
            ConfigError: no such matrix, or it has no other config.
            InfeasibleBudget: no other config fits.
        """
        row = self._row(key)
        return self._solved_with(row, ~self._same(row), f"matrix {key} has no other config")

    def more_bytes(self, nbytes: int) -> Price:
        """The value of so many bytes more (or fewer, if negative): ``difference`` is 0 or less for more.

        Raises:
            InfeasibleBudget: what is left is too small.
        """
        return self._price(self._solve(self.table, self.budget + nbytes, self._merged))

    def second_best(self) -> Price | None:
        """The best allocation that differs; None where there is none within the budget."""
        found = second_constrained(self.table, self.budget, self.solution, work_limit=self.work_limit)
        if found is None:
            return None
        low = found.objective - found.tolerance if found.proven else self.solution.lower_bound
        return self._compared(found.choice, found.objective, found.total_bytes, low, proven=found.proven)

    def regrets(self) -> tuple[Regret, ...]:
        """For every matrix what the bound alone says, in O(n·k); ``other_than_chosen`` is exact."""
        table, solution = self.table, self.solution
        sets = SetTable.build(table.errors, table.nbytes, self.budget, table.component, table.labels)
        # under at most m configs the bound of all columns is weaker, but the same argument holds
        unlimited, by_multiplier = replace(table, constraints=Constraints()), replace(solution, prices=None)
        proven = min(bound_of(unlimited, self.budget, by_multiplier), solution.objective)
        cost = sets.cost(solution.multiplier)
        least = sets.least(cost, np.arange(self._n_columns))
        sums = np.where(sets.valid, sets.by_component(least), np.inf)
        best = sums.min(axis=1)
        out = []
        for row, spec in enumerate(table.problem.specs):
            c = int(table.member_of[row])
            component = int(table.component[c])
            # the component's cost when this class has column j and the others their best under its label
            with_column = sums[component, sets.label[c]] - least[c, sets.label[c]] + cost[c]
            reduced = np.where(self._same(row) | ~np.isfinite(cost[c]), np.inf, with_column - best[component])
            column = int(np.argmin(reduced))
            rises = float(reduced[column])
            runner_up = table.problem.config_of(row, column) if np.isfinite(rises) else None
            out.append(Regret(spec.key, runner_up, rises, max(0.0, proven + rises - solution.objective)))
        return tuple(out)

    @property
    def _n_columns(self) -> int:
        return len(self.table.problem.menu)

    def _row(self, key: MatrixKey) -> int:
        for row, spec in enumerate(self.table.problem.specs):
            if spec.key == key:
                return row
        raise ConfigError(f"the problem has no matrix {key}")

    def _same(self, row: int) -> NDArray[np.bool_]:
        """(k,) columns that are the chosen config for this matrix: its own, and those clamped to the same."""
        return self._columns_of(row, self.table.problem.config_of(row, int(self.solution.choice[row])))

    def _columns_of(self, row: int, config: CompressionConfig) -> NDArray[np.bool_]:
        """(k,) columns that are this config for this matrix."""
        problem = self.table.problem
        return np.array([hash_of(problem.config_of(row, j)) == hash_of(config) for j in range(self._n_columns)])

    def _solved_with(self, row: int, columns: NDArray[np.bool_], refusal: str) -> Price:
        c = int(self.table.member_of[row])
        errors = self.table.errors.copy()
        errors[c] = np.where(columns, errors[c], np.inf)
        if not np.isfinite(errors[c]).any():
            raise ConfigError(f"{refusal}{' under the constraints' if self.table.constraints else ''}")
        table, merged = replace(self.table, errors=errors), self._merged
        if merged is not None:
            # the row anew: what was dominated before may be the best that is left
            component = int(table.component[c])
            merged = merged.with_component(component, table.merged_component(component))
        return self._price(self._solve(table, self.budget, merged))

    def _solve(self, table: ConstrainedTable, budget: int, merged: MergedTable | None) -> AllocationSolution:
        return solve_constrained(table, budget, merged=merged, work_limit=self.work_limit)

    def _price(self, other: AllocationSolution) -> Price:
        low = other.objective - other.tolerance if other.optimal else other.lower_bound
        return self._compared(other.choice, other.objective, other.total_bytes, low, proven=other.optimal)

    def _compared(
        self, choice: NDArray[np.int64], objective: float, total_bytes: int, lowest: float, *, proven: bool
    ) -> Price:
        first = self.solution
        first_lowest = first.objective - first.tolerance if first.optimal else first.lower_bound
        keys = tuple(
            spec.key for spec, a, b in zip(self.table.problem.specs, first.choice, choice, strict=True) if a != b
        )
        return Price(
            choice=choice,
            objective=objective,
            total_bytes=total_bytes,
            difference=objective - first.objective,
            at_least=lowest - first.objective,
            at_most=objective - first_lowest,
            proven=proven and first.optimal,
            changed=keys,
        )
