"""Solve a constrained table: exact under a budget, groups and at most m configs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compress_core.allocate.certificate import lagrangian_bound
from compress_core.allocate.constrained import ConstrainedTable
from compress_core.allocate.few_configs import NODE_LIMIT, Evaluated, SetSearch
from compress_core.allocate.merged import MergedTable
from compress_core.allocate.relaxation import relaxed_multiplier, sort_and_drop_dominated
from compress_core.allocate.second_best import SecondBest, second_best
from compress_core.allocate.set_bound import Prices, SetTable
from compress_core.allocate.smallest import raisers, smallest_choice
from compress_core.allocate.solution import AllocationSolution
from compress_core.allocate.solver import WORK_LIMIT, solve_allocation
from compress_core.errors import ConfigError, InfeasibleBudget

#: objectives of column sets that differ by less, relative to the best one, count as equal
_SET_TOLERANCE = 1e-12


def solve_constrained(
    table: ConstrainedTable,
    budget: int,
    *,
    merged: MergedTable | None = None,
    work_limit: int = WORK_LIMIT,
    node_limit: int = NODE_LIMIT,
) -> AllocationSolution:
    """The best choice under the constraints; ``choice`` has the menu's column of every matrix.

    The bound is one that ``bound_of`` recomputes from ``multiplier`` or ``prices``. ``optimal`` is true only where the
    enumeration was complete; beyond ``work_limit`` states or ``node_limit`` column sets it is false.

    Args:
        merged: ``table.merged()``, where it is already known.

    Raises:
        InfeasibleBudget: the message says which constraints raise the smallest allocation.
        ConfigError: no ``max_configs`` configs cover every matrix.
    """
    first = smallest_choice(table)
    smallest = int(table.nbytes[np.arange(len(first)), first].sum())
    if smallest > budget:
        raise InfeasibleBudget(_too_small(table, budget, smallest), smallest_bytes=smallest)
    if table.max_configs is not None:
        return _few(table, budget, first, work_limit, node_limit)
    merged = merged or table.merged()
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


def second_constrained(
    table: ConstrainedTable,
    budget: int,
    first: AllocationSolution,
    *,
    work_limit: int = WORK_LIMIT,
    node_limit: int = NODE_LIMIT,
) -> SecondBest | None:
    """The best choice that differs from ``first`` and keeps to the constraints; None where there is none.

    ``choice`` has the menu's column of every matrix. What counts as different says ``second_best``; matrices of one
    component count together.
    """
    columns = np.empty(len(table.errors), dtype=np.int64)
    columns[table.member_of] = first.choice
    if table.max_configs is not None:
        search, _ = _search(table, budget, columns, work_limit, node_limit, avoid=columns)
        if search.best is None:
            return None
        proven, tolerance = search.proven, search.tolerance + search.best.answer.tolerance
        class_columns = search.best.answer.class_columns
    else:
        merged = table.merged(depth=2)
        option = _options(table, merged, columns)
        assert option is not None
        found = second_best(merged.errors, merged.nbytes, budget, option, first.multiplier, work_limit=work_limit)
        if found is None:
            return None
        proven, tolerance, class_columns = found.proven, found.tolerance, merged.columns_of(found.choice)
    choice = table.spread(class_columns)
    rows = np.arange(len(choice))
    objective = math.fsum(table.problem.objective_table[rows, choice])
    return SecondBest(choice, objective, int(table.problem.nbytes[rows, choice].sum()), proven, tolerance)


def _options(
    table: ConstrainedTable, merged: MergedTable, class_columns: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """(R,) the option of each row with the errors and bytes of these columns; None where some row has none."""
    classes = np.arange(len(class_columns))
    errors, nbytes = np.zeros(table.n_components), np.zeros(table.n_components, dtype=np.int64)
    # added in the order in which a product adds, so that equal sums are equal floats
    np.add.at(errors, table.component, table.errors[classes, class_columns])
    np.add.at(nbytes, table.component, table.nbytes[classes, class_columns])
    same = (merged.errors == errors[:, None]) & (merged.nbytes == nbytes[:, None])
    return same.argmax(axis=1) if same.any(axis=1).all() else None


@dataclass(frozen=True, eq=False, slots=True)
class _SetAnswer:
    class_columns: NDArray[np.int64]
    tolerance: float
    #: None for a second best
    solution: AllocationSolution | None


def _few(
    table: ConstrainedTable, budget: int, first: NDArray[np.int64], work_limit: int, node_limit: int
) -> AllocationSolution:
    search, states = _search(table, budget, first, work_limit, node_limit, avoid=None)
    assert search.best is not None
    answer = search.best.answer
    assert answer.solution is not None
    solution = replace(
        answer.solution,
        lower_bound=min(search.lower_bound, answer.solution.objective),
        optimal=search.proven,
        proof="column sets exhausted" if search.proven else "work limit reached",
        tolerance=answer.tolerance + search.tolerance,
        total_states=states,
        prices=search.prices,
        n_sets=search.n_nodes,
    )
    return _for_matrices(table, solution, answer.class_columns)


def _search(
    table: ConstrainedTable,
    budget: int,
    first: NDArray[np.int64],
    work_limit: int,
    node_limit: int,
    *,
    avoid: NDArray[np.int64] | None,
) -> tuple[SetSearch[_SetAnswer], int]:
    """Search the sets of at most m columns.

    Args:
        first: (C,) columns of a choice that fits.
        avoid: (C,) columns of the choice that does not count.
    """
    assert table.max_configs is not None
    states = 0

    def evaluate(columns: tuple[int, ...], limit: float) -> Evaluated[_SetAnswer] | None:
        nonlocal states
        try:
            merged = table.merged(columns, depth=1 if avoid is None else 2)
        except ConfigError:
            return None  # the set leaves a matrix without a config: it holds no choice
        if int(np.where(np.isfinite(merged.errors), merged.nbytes, budget + 1).min(axis=1).sum()) > budget:
            return None
        sorted_table = sort_and_drop_dominated(merged.errors, merged.nbytes)
        multiplier = relaxed_multiplier(sorted_table, budget)
        if lagrangian_bound(merged.errors, merged.nbytes, budget, multiplier) >= limit:
            return None
        left = max(work_limit - states, 0)
        taken = None if avoid is None else _options(table, merged, avoid)
        if taken is not None:
            other = second_best(merged.errors, merged.nbytes, budget, taken, multiplier, work_limit=left)
            if other is None:
                return None
            second = _SetAnswer(merged.columns_of(other.choice), other.tolerance, None)
            return Evaluated(other.objective, second, proven=other.proven)
        found = solve_allocation(merged.errors, merged.nbytes, budget, work_limit=left)
        states += found.total_states
        answer = _SetAnswer(merged.columns_of(found.choice), found.tolerance, found)
        return Evaluated(found.objective, answer, proven=found.optimal)

    sets = SetTable.build(table.errors, table.nbytes, budget, table.component, table.labels)
    scale = float(table.errors[np.arange(len(first)), first].sum())
    search = SetSearch(
        sets,
        table.max_configs,
        evaluate,
        tolerance=_SET_TOLERANCE * scale,
        relative=_SET_TOLERANCE,
        node_limit=node_limit,
    )
    search.offer(tuple(int(j) for j in np.unique(first)))
    search.run()
    return search, states


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
