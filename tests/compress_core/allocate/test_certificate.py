"""What can be recomputed from the multiplier, and the frontier."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from compress_core.allocate import frontier, lagrangian_bound, reduced_costs, solve_allocation


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


def test_a_table_without_choice_has_one_point() -> None:
    found = frontier([[1.0], [2.0]], [[3], [4]])
    assert found.total_bytes.tolist() == [7]
    assert found.objective.tolist() == [3.0]
