"""The optimal allocation of a problem under a budget."""

from __future__ import annotations

from compress_core.allocate.allocation import Allocation, allocation_from_choice
from compress_core.allocate.budget import Budget
from compress_core.allocate.problem import AllocationProblem
from compress_core.allocate.solver import WORK_LIMIT, solve_allocation
from compress_core.errors import ConfigError, InfeasibleBudget


def optimal_allocation(problem: AllocationProblem, budget: Budget | int, *, work_limit: int = WORK_LIMIT) -> Allocation:
    """Solve min Σ a_i·ε_i under the budget; ``.solution`` holds the certificate.

    Args:
        budget: a ``Budget``, or bytes for the matrices.

    Raises:
        InfeasibleBudget: even the smallest configs do not fit; the message counts what lies outside the matrices.
        ConfigError: a matrix has no available config.
    """
    available = budget.matrix_bytes(problem) if isinstance(budget, Budget) else budget
    smallest = problem.smallest_bytes
    if smallest is None:
        missing = next(
            s.key for s, row in zip(problem.specs, problem.errors, strict=True) if not (row < float("inf")).any()
        )
        raise ConfigError(f"matrix {missing} has no available config: measure or fit at least one")
    if available < smallest:
        if isinstance(budget, Budget) and budget.scope == "model":
            raise InfeasibleBudget(
                f"a budget of {budget} for the whole model leaves {available:,} bytes for the matrices, because "
                f"{problem.fixed_bytes:,} bytes (embeddings, head, norms) are not compressed; the smallest configs "
                f"take {smallest:,} bytes: allow at least {smallest + problem.fixed_bytes:,} bytes, use scope decoder, "
                "or offer smaller configs",
                smallest_bytes=smallest + problem.fixed_bytes,
            )
        raise InfeasibleBudget(
            f"a budget of {available:,} bytes for the matrices is below the {smallest:,} bytes of the smallest "
            f"configs: allow at least {smallest:,} bytes, or offer smaller configs",
            smallest_bytes=smallest,
        )
    solution = solve_allocation(problem.objective_table, problem.nbytes, available, work_limit=work_limit)
    return allocation_from_choice(problem, solution.choice, kind="optimal", budget_bytes=available, solution=solution)
