"""What can be recomputed from the multiplier, and the frontier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest

from compress_core.allocate import (
    AllocationProblem,
    Constraints,
    Group,
    Limit,
    MatrixPattern,
    constrained,
    constrained_frontier,
    frontier,
    lagrangian_bound,
    reduced_costs,
    solve_allocation,
    solve_constrained,
)
from compress_core.errors import ConfigError


def test_reduced_costs_bound_the_price_of_a_pin(make_instance: Callable[..., tuple]) -> None:
    errors, nbytes, budget = make_instance(20, (2, 3, 4), (0, 16), seed=5, fraction=0.4)
    solution = solve_allocation(errors, nbytes, budget)
    reduced = reduced_costs(errors, nbytes, solution.multiplier)
    assert (reduced.min(axis=1) == 0).all()
    for row, column in ((0, 0), (3, 5), (11, 2)):
        pinned = errors.copy()
        pinned[row] = np.inf
        pinned[row, column] = errors[row, column]
        price = solve_allocation(pinned, nbytes, budget).objective - solution.lower_bound
        assert price >= reduced[row, column] * (1 - 1e-9) - 1e-12


def test_the_frontier_is_optimal_at_its_points_and_bounds_between(make_instance: Callable[..., tuple]) -> None:
    errors, nbytes, _ = make_instance(25, (2, 3, 4), (0, 16, 64), seed=4, fraction=0.5)
    found = frontier(errors, nbytes)
    assert (np.diff(found.total_bytes) > 0).all()
    assert (np.diff(found.objective) < 0).all()
    assert (np.diff(found.multiplier) < 0).all()
    for point in range(0, len(found.total_bytes), 9):
        at = int(found.total_bytes[point])
        assert solve_allocation(errors, nbytes, at).objective == pytest.approx(found.objective[point], rel=1e-9)
        between = solve_allocation(errors, nbytes, at + 777)
        assert found.lower_bound(at + 777) <= between.objective * (1 + 1e-12)
        assert found.lower_bound(at + 777) == pytest.approx(
            lagrangian_bound(errors, nbytes, at + 777, between.multiplier), rel=1e-9
        )
    assert found.lower_bound(int(found.total_bytes[0]) - 1) == np.inf
    assert found.objective[-1] == pytest.approx(errors.min(axis=1).sum())


def test_the_allocation_at_every_point_can_be_had(make_instance: Callable[..., tuple]) -> None:
    errors, nbytes, _ = make_instance(25, (2, 3, 4), (0, 16, 64), seed=4, fraction=0.5)
    found = frontier(errors, nbytes)
    rows = np.arange(len(errors))
    for point, total in enumerate(found.total_bytes):
        choice = found.choice(point)
        assert nbytes[rows, choice].sum() == total
        assert errors[rows, choice].sum() == pytest.approx(found.objective[point], rel=1e-9)
        assert found.point_within(int(total)) == point
    assert found.point_within(int(found.total_bytes[0]) - 1) is None
    assert found.point_within(int(found.total_bytes[-1]) * 2) == len(found.total_bytes) - 1


@pytest.mark.parametrize("agree", ["config", "b_q"])
def test_the_frontier_keeps_to_constraints(small_problem: AllocationProblem, agree: Literal["config", "b_q"]) -> None:
    constraints = Constraints(
        limits=(Limit(MatrixPattern(projections=("down",)), min_b_q=3),), groups=(Group(("q", "k", "v"), agree=agree),)
    )
    table = constrained(small_problem, constraints)
    found = constrained_frontier(table)
    rows = np.arange(len(small_problem.specs))
    assert len(found.total_bytes) > 20
    for point in range(0, len(found.total_bytes), 5):
        choice, total = found.choice(point), int(found.total_bytes[point])
        solution = solve_constrained(table, total)
        assert small_problem.nbytes[rows, choice].sum() == total
        assert small_problem.objective_table[rows, choice].sum() == pytest.approx(solution.objective, rel=1e-9)
        assert table.allowed[rows, choice].all()
        for layer in range(4):
            taken = [small_problem.menu[choice[7 * layer + p]] for p in range(3)]
            assert len({c.b_q if agree == "b_q" else c.config_hash for c in taken}) == 1
    with pytest.raises(ConfigError, match="no frontier under at most 2 configs"):
        constrained_frontier(constrained(small_problem, Constraints(max_configs=2)))


def test_a_table_without_choice_has_one_point() -> None:
    found = frontier([[1.0], [2.0]], [[3], [4]])
    assert found.total_bytes.tolist() == [7]
    assert found.objective.tolist() == [3.0]
