"""Solve a constrained table: exact under a budget, groups and at most m configs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compress_core.allocate.certificate import lagrangian_bound
from compress_core.allocate.constrained import ConstrainedTable
from compress_core.allocate.few_configs import NODE_LIMIT, Evaluated, SetSearch
from compress_core.allocate.relaxation import relax, sort_and_drop_dominated
from compress_core.allocate.set_bound import Prices, SetTable
from compress_core.allocate.smallest import raisers, smallest_bytes, smallest_choice
from compress_core.allocate.solution import AllocationSolution
from compress_core.allocate.solver import WORK_LIMIT, solve_allocation
from compress_core.errors import ConfigError, InfeasibleBudget

#: objectives of column sets that differ by less, relative to the best one, count as equal
_SET_TOLERANCE = 1e-12


def solve_constrained(
    table: ConstrainedTable, budget: int, *, work_limit: int = WORK_LIMIT, node_limit: int = NODE_LIMIT
) -> AllocationSolution:
    """The best choice under the constraints; ``choice`` has the menu's column of every matrix.

    The bound is one that ``bound_of`` recomputes from ``multiplier`` or ``prices``. ``optimal`` is true only where the
    enumeration was complete; beyond ``work_limit`` states or ``node_limit`` column sets it is false.

    Raises:
        InfeasibleBudget: the message says which constraints raise the smallest allocation.
        ConfigError: no ``max_configs`` configs cover every matrix.
    """
    smallest = smallest_bytes(table)
    if smallest > budget:
        raise InfeasibleBudget(_too_small(table, budget, smallest), smallest_bytes=smallest)
    if table.max_configs is not None:
        return _few(table, budget, work_limit, node_limit)
    merged = table.merged()
    solution = solve_allocation(merged.errors, merged.nbytes, budget, work_limit=work_limit)
    return _for_matrices(table, solution, merged.columns_of(solution.choice))


def _too_small(table: ConstrainedTable, budget: int, smallest: int) -> str:
    blamed = raisers(table, smallest) if table.constraints else []
    why = f" under the constraints, raised by {'; '.join(blamed)}" if blamed else ""
    cure = "loosen a constraint, or offer smaller configs" if blamed else "or offer smaller configs"
    return (
        f"the budget of {budget:,} bytes for the matrices is below the {smallest:,} bytes of the smallest "
        f"configs{why}: allow {smallest - budget:,} bytes more, {cure}"
    )


def _for_matrices(
    table: ConstrainedTable, solution: AllocationSolution, class_columns: NDArray[np.int64]
) -> AllocationSolution:
    choice = table.spread(class_columns)
    rows = np.arange(len(choice))
    objective = math.fsum(table.problem.objective_table[rows, choice])
    bound = min(solution.lower_bound, objective)
    return replace(
        solution,
        choice=choice,
        total_bytes=int(table.problem.nbytes[rows, choice].sum()),
        objective=objective,
        lower_bound=bound,
        gap=objective - bound,
    )


@dataclass(frozen=True, eq=False, slots=True)
class _SetAnswer:
    solution: AllocationSolution
    class_columns: NDArray[np.int64]


def _few(table: ConstrainedTable, budget: int, work_limit: int, node_limit: int) -> AllocationSolution:
    m = table.max_configs
    assert m is not None
    states = 0

    def evaluate(columns: tuple[int, ...], limit: float) -> Evaluated[_SetAnswer] | None:
        nonlocal states
        try:
            merged = table.merged(columns)
        except ConfigError:
            return None  # the set leaves a matrix without a config: it holds no choice
        if int(np.where(np.isfinite(merged.errors), merged.nbytes, budget + 1).min(axis=1).sum()) > budget:
            return None
        sorted_table = sort_and_drop_dominated(merged.errors, merged.nbytes)
        multiplier = relax(sorted_table, budget).multiplier
        if lagrangian_bound(merged.errors, merged.nbytes, budget, multiplier) >= limit:
            return None
        left = max(work_limit - states, 0)
        found = solve_allocation(merged.errors, merged.nbytes, budget, work_limit=left)
        states += found.total_states
        return Evaluated(found.objective, _SetAnswer(found, merged.columns_of(found.choice)), proven=found.optimal)

    sets = SetTable.build(table.errors, table.nbytes, budget, table.component, table.labels)
    classes = np.arange(len(table.errors))
    first = smallest_choice(table)
    scale = float(table.errors[classes, first].sum())
    search = SetSearch(sets, m, evaluate, tolerance=_SET_TOLERANCE * scale, node_limit=node_limit)
    search.offer(tuple(int(j) for j in np.unique(first)))
    search.run()
    assert search.best is not None
    assert search.prices is not None
    answer = search.best.answer
    solution = replace(
        answer.solution,
        lower_bound=min(search.lower_bound, answer.solution.objective),
        optimal=search.proven,
        proof="column sets exhausted" if search.proven else "work limit reached",
        tolerance=answer.solution.tolerance + search.tolerance,
        total_states=states,
        prices=search.prices,
        n_sets=search.n_nodes,
    )
    return _for_matrices(table, solution, answer.class_columns)


def bound_of(table: ConstrainedTable, budget: int, solution: AllocationSolution) -> float:
    """The lower bound that a solution's multiplier or prices prove, recomputed in O(n·k) without any search."""
    sets = SetTable.build(table.errors, table.nbytes, budget, table.component, table.labels)
    k = len(table.problem.menu)
    prices = solution.prices
    if prices is None:
        rows = sets.least(sets.cost(solution.multiplier), np.arange(k))
        prices = Prices(solution.multiplier, np.where(np.isfinite(rows), rows, 0.0))
    everything = np.ones(k, dtype=bool)
    return sets.bound(prices, ~everything, everything, table.max_configs or k).value
