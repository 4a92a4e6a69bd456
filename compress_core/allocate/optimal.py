"""The optimal allocation of a problem under a budget."""

from __future__ import annotations

from compress_core.allocate.allocation import Allocation, allocation_from_choice
from compress_core.allocate.budget import Budget
from compress_core.allocate.constrained import constrained
from compress_core.allocate.constrained_solver import solve_constrained
from compress_core.allocate.constraints import Constraints
from compress_core.allocate.problem import AllocationProblem
from compress_core.allocate.solver import WORK_LIMIT
from compress_core.errors import InfeasibleBudget


def optimal_allocation(
    problem: AllocationProblem,
    budget: Budget | int,
    *,
    constraints: Constraints | None = None,
    work_limit: int = WORK_LIMIT,
) -> Allocation:
    """Solve min Σ a_i·ε_i under the budget and the constraints; ``.solution`` holds the certificate.

    Args:
        budget: a ``Budget``, or bytes for the matrices.

    Raises:
        InfeasibleBudget: even the smallest choice does not fit; the message counts what lies outside the matrices and
            names the constraints that raise it.
        ConfigError: a matrix has no available config, or a constraint leaves it none.
    """
    available = budget.matrix_bytes(problem) if isinstance(budget, Budget) else budget
    table = constrained(problem, constraints)
    try:
        solution = solve_constrained(table, available, work_limit=work_limit)
    except InfeasibleBudget as error:
        raise _in_scope(error, problem, budget, available) from error
    return allocation_from_choice(problem, solution.choice, kind="optimal", budget_bytes=available, solution=solution)


def _in_scope(
    error: InfeasibleBudget, problem: AllocationProblem, budget: Budget | int, available: int
) -> InfeasibleBudget:
    """The solver speaks of matrices; a budget for the whole model counts more."""
    if not isinstance(budget, Budget) or budget.scope != "model":
        return error
    smallest = error.smallest_bytes + problem.fixed_bytes
    return InfeasibleBudget(
        f"a budget of {budget} for the whole model leaves {available:,} bytes for the matrices, because "
        f"{problem.fixed_bytes:,} bytes (embeddings, head, norms) are not compressed: {error}. Allow at least "
        f"{smallest:,} bytes in all, or use scope decoder",
        smallest_bytes=smallest,
    )
