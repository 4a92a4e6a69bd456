"""AllocationProblem, uniform and optimal allocations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compress_core.allocate import (
    AllocationProblem,
    Budget,
    Cell,
    allocation_from_choice,
    best_uniform,
    optimal_allocation,
    uniform_allocation,
    uniform_candidates,
)
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError, InfeasibleBudget, NonFiniteValues
from compress_core.matrix import MatrixKey, MatrixSpec


def test_cells_are_found_under_the_clamped_config(small_problem: AllocationProblem) -> None:
    row = [s.key for s in small_problem.specs].index(MatrixKey(1, "k"))
    column = small_problem.column_of(CompressionConfig(b_q=3, rank=32))
    assert small_problem.config_of(row, column).rank == 16
    assert np.isfinite(small_problem.errors).all()


def test_a_missing_cell_is_not_available_even_at_weight_zero() -> None:
    spec = MatrixSpec(MatrixKey(0, "q"), 8, 8, "w")
    menu = (CompressionConfig(b_q=2), CompressionConfig(b_q=3))
    problem = AllocationProblem.from_cells(
        [spec], menu, {(spec.key, menu[0].config_hash): Cell(0.5, 16)}, weights={spec.key: 0.0}
    )
    assert problem.objective_table.tolist() == [[0.0, np.inf]]
    assert problem.smallest_bytes == 16
    assert [c.config for c in uniform_candidates(problem)] == [menu[0]]
    with pytest.raises(ConfigError, match=r"0\.q has no error for"):
        allocation_from_choice(problem, [1], kind="manual")


def test_problem_refuses_what_does_not_fit(small_problem: AllocationProblem) -> None:
    with pytest.raises(ConfigError, match="tables of that shape"):
        replace(small_problem, weights=np.ones(3))
    with pytest.raises(NonFiniteValues, match=r"weight of matrix 0\.q"):
        replace(small_problem, weights=np.full(28, np.nan))
    with pytest.raises(NonFiniteValues, match=r"error of matrix 0\.q"):
        replace(small_problem, errors=np.full((28, 6), -1.0))
    with pytest.raises(ConfigError, match=r"matrix 0\.q appears twice"):
        replace(small_problem, specs=(small_problem.specs[0],) * 28)
    with pytest.raises(ConfigError, match="appears twice"):
        replace(small_problem, menu=(small_problem.menu[0],) * 6)
    with pytest.raises(ConfigError, match="at least one"):
        replace(small_problem, specs=())
    with pytest.raises(ConfigError, match=r"no sensitivity for matrix 0\.q"):
        AllocationProblem.from_cells(small_problem.specs, small_problem.menu, {}, weights={})


def test_uniform_candidates_record_clamped_ranks(small_problem: AllocationProblem) -> None:
    candidates = uniform_candidates(small_problem)
    assert len(candidates) == 6
    assert [c.total_bytes for c in candidates] == sorted(c.total_bytes for c in candidates)
    by_config = {c.config: c for c in candidates}
    assert by_config[CompressionConfig(b_q=2, rank=0)].clamped == ()
    clamped = dict(by_config[CompressionConfig(b_q=2, rank=32)].clamped)
    assert clamped == {MatrixKey(layer, p): 16 for layer in range(4) for p in ("k", "v")}


def test_best_uniform_is_the_best_that_fits(small_problem: AllocationProblem) -> None:
    for candidate in uniform_candidates(small_problem):
        best = best_uniform(small_problem, candidate.total_bytes)
        assert best.total_bytes <= candidate.total_bytes
        assert best.objective <= candidate.objective
        assert best.is_uniform
    smallest = uniform_candidates(small_problem)[0].total_bytes
    with pytest.raises(InfeasibleBudget, match="no uniform allocation fits") as caught:
        best_uniform(small_problem, smallest - 1)
    assert caught.value.smallest_bytes == smallest


def test_optimal_beats_or_equals_every_uniform_at_its_bytes(small_problem: AllocationProblem) -> None:
    for candidate in uniform_candidates(small_problem):
        optimal = optimal_allocation(small_problem, candidate.total_bytes)
        assert optimal.solution is not None
        assert optimal.solution.optimal
        assert optimal.total_bytes == optimal.solution.total_bytes <= candidate.total_bytes
        assert optimal.objective == pytest.approx(optimal.solution.objective, rel=1e-12)
        assert optimal.objective <= candidate.objective * (1 + 1e-12)


def test_uniform_is_recognised_in_spite_of_clamping(small_problem: AllocationProblem) -> None:
    uniform = uniform_allocation(small_problem, CompressionConfig(b_q=2, rank=32))
    assert uniform.is_uniform
    assert sum(item.clamped for item in uniform.items) == 8
    assert uniform.counts() == {CompressionConfig(b_q=2, rank=32): 28}
    middle = optimal_allocation(small_problem, uniform.total_bytes)
    assert not middle.is_uniform
    assert sum(middle.counts().values()) == 28
    assert uniform.bits_per_weight == pytest.approx(8 * uniform.total_bytes / small_problem.n_weights)


def test_infeasible_budget_counts_what_lies_outside(small_problem: AllocationProblem) -> None:
    smallest = small_problem.smallest_bytes
    assert smallest is not None
    with pytest.raises(InfeasibleBudget, match=r"embeddings, head, norms.*scope decoder") as caught:
        optimal_allocation(small_problem, Budget.parse(smallest + 49_999, scope="model"))
    assert caught.value.smallest_bytes == smallest + 50_000
    assert optimal_allocation(small_problem, Budget.parse(smallest + 50_000, scope="model")).total_bytes == smallest
    with pytest.raises(InfeasibleBudget, match="smallest configs") as caught:
        optimal_allocation(small_problem, smallest - 1)
    assert caught.value.smallest_bytes == smallest


def test_a_matrix_without_any_config_is_named(small_problem: AllocationProblem) -> None:
    errors = small_problem.errors.copy()
    errors[5] = np.inf
    with pytest.raises(ConfigError, match=r"matrix 0\.up has no available config"):
        optimal_allocation(replace(small_problem, errors=errors), 10**9)


def test_a_config_off_the_menu_is_refused(small_problem: AllocationProblem) -> None:
    with pytest.raises(ConfigError, match="menu has no config"):
        uniform_allocation(small_problem, CompressionConfig(b_q=2, rank=1))
