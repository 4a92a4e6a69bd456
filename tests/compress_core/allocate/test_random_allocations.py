"""Random allocations: distinct, seeded, broad, and within their band of bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compress_core.allocate import (
    Allocation,
    AllocationProblem,
    Budget,
    Cell,
    optimal_allocation,
    random_allocations,
    uniform_candidates,
)
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError, InfeasibleBudget
from compress_core.matrix import MatrixKey, MatrixSpec


@pytest.fixture
def budget(small_problem: AllocationProblem) -> int:
    return uniform_candidates(small_problem)[2].total_bytes


def names(allocations: tuple[Allocation, ...]) -> list[tuple[str, ...]]:
    return [tuple(item.config.config_hash for item in a.items) for a in allocations]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_they_are_distinct_and_lie_in_the_band(small_problem: AllocationProblem, share: float) -> None:
    low, high = small_problem.smallest_bytes or 0, int(small_problem.nbytes.max(axis=1).sum())
    budget = int(low + share * (high - low))
    found = random_allocations(small_problem, budget, count=40, seed=5, near=10)
    assert [a.kind for a in found] == ["random"] * 30 + ["near_optimal"] * 10
    assert all(budget * 0.995 <= a.total_bytes <= budget == a.budget_bytes for a in found)
    assert len(set(names(found))) == 40


def test_near_optimal_ones_are_near_but_not_the_optimum(small_problem: AllocationProblem, budget: int) -> None:
    best = optimal_allocation(small_problem, budget)
    found = random_allocations(small_problem, budget, count=30, seed=0, near=10)
    broad, near = (np.array([a.objective for a in part]) / best.objective for part in (found[:20], found[20:]))
    assert names((best,))[0] not in names(found)
    assert 1 <= near.min() <= near.max() < 1.5
    assert np.median(near) < np.median(broad)
    # broad: neither all alike nor all equally bad
    assert broad.max() > 1.5 * broad.min()


def test_a_seed_repeats_and_a_larger_count_only_adds(small_problem: AllocationProblem, budget: int) -> None:
    five = names(random_allocations(small_problem, budget, count=5, seed=3))
    assert names(random_allocations(small_problem, budget, count=5, seed=3)) == five
    assert names(random_allocations(small_problem, budget, count=9, seed=3))[:5] == five
    assert not set(five) & set(names(random_allocations(small_problem, budget, count=5, seed=4)))


def test_the_draw_is_blind_to_errors_and_weights(small_problem: AllocationProblem, budget: int) -> None:
    blind = replace(
        small_problem, errors=np.ones_like(small_problem.errors), weights=np.ones_like(small_problem.weights)
    )
    assert names(random_allocations(blind, budget, count=5, seed=3)) == names(
        random_allocations(small_problem, budget, count=5, seed=3)
    )


def test_weights_of_single_cells_are_noised_by_matrix(small_problem: AllocationProblem, budget: int) -> None:
    """A weight for each cell that says the same as one for each matrix gives the same allocations."""
    by_cell = replace(small_problem, weights=np.repeat(small_problem.weights[:, None], 6, axis=1))
    assert names(random_allocations(by_cell, budget, count=6, seed=3, near=4)) == names(
        random_allocations(small_problem, budget, count=6, seed=3, near=4)
    )


def test_unavailable_cells_are_never_drawn(small_problem: AllocationProblem, budget: int) -> None:
    errors = small_problem.errors.copy()
    errors[::2, 1::2] = np.inf
    problem = replace(small_problem, errors=errors)
    for allocation in random_allocations(problem, budget, count=10, seed=1, near=3):
        columns = [problem.column_of(item.menu_config) for item in allocation.items]
        assert np.isfinite(errors[np.arange(len(errors)), columns]).all()


def test_ranks_that_a_matrix_clamps_alike_are_one_config() -> None:
    specs = [MatrixSpec(MatrixKey(layer, "q"), 16, 64, f"{layer}.q") for layer in range(3)]
    menu = [CompressionConfig(b_q=2, rank=r) for r in (8, 16, 32, 64)]
    cells = {
        (s.key, c.clamped(16, 64).config_hash): Cell(1.0 / c.clamped(16, 64).rank, 100 + c.clamped(16, 64).rank)
        for s in specs
        for c in menu
    }
    problem = AllocationProblem.from_cells(specs, menu, cells)
    # 108 or 116 bytes each: 3 allocations have one small matrix, and no other combination takes 340 bytes
    assert len(set(names(random_allocations(problem, 340, count=3, seed=0)))) == 3
    with pytest.raises(ConfigError, match="only 3 of 4 random and 0 of 0 near-optimal"):
        random_allocations(problem, 340, count=4, seed=0)


def test_fewer_will_do_where_the_band_has_no_more(small_problem: AllocationProblem) -> None:
    largest = int(small_problem.nbytes.max(axis=1).sum())
    with pytest.raises(ConfigError, match="only 1 of 5 random"):
        random_allocations(small_problem, largest, count=5, seed=0, within=1e-5)
    (only,) = random_allocations(small_problem, largest, count=5, seed=0, within=1e-5, fewer=True)
    assert only.total_bytes == largest
    # nor is the optimum, which it is here, given out as near-optimal
    assert len(random_allocations(small_problem, largest, count=5, seed=0, within=1e-5, near=3, fewer=True)) == 1
    with pytest.raises(ConfigError, match="the largest within the budget takes"):
        random_allocations(small_problem, 2 * largest, count=5, seed=0, fewer=True)


def test_an_empty_band_is_told_with_what_would_do() -> None:
    specs = [MatrixSpec(MatrixKey(layer, "q"), 16, 64, f"{layer}.q") for layer in range(3)]
    menu = [CompressionConfig(b_q=2), CompressionConfig(b_q=4)]
    cells = {(s.key, c.config_hash): Cell(1.0 / c.b_q, 1000 * c.b_q) for s in specs for c in menu}
    problem = AllocationProblem.from_cells(specs, menu, cells)
    with pytest.raises(ConfigError, match=r"between 8,955 and 9,000 bytes: the largest within the budget takes 8,000"):
        random_allocations(problem, 9000, count=1, seed=0)
    with pytest.raises(ConfigError, match="takes 12,000"):
        random_allocations(problem, 20_000, count=1, seed=0)
    assert random_allocations(problem, 9000, count=3, seed=0, within=0.2)[0].total_bytes == 8000


def test_refusals(small_problem: AllocationProblem) -> None:
    with pytest.raises(InfeasibleBudget, match="smallest configs") as caught:
        random_allocations(small_problem, 10, count=1, seed=0)
    assert caught.value.smallest_bytes == small_problem.smallest_bytes
    with pytest.raises(ConfigError, match="at least one"):
        random_allocations(small_problem, 10**6, count=0, seed=0)
    with pytest.raises(ConfigError, match="near = 3 of 2"):
        random_allocations(small_problem, 10**6, count=2, seed=0, near=3)
    with pytest.raises(ConfigError, match="within"):
        random_allocations(small_problem, 10**6, count=2, seed=0, within=0.0)


def test_a_named_budget_counts_what_lies_outside(small_problem: AllocationProblem, budget: int) -> None:
    whole = Budget.parse(budget + small_problem.fixed_bytes, scope="model")
    assert names(random_allocations(small_problem, whole, count=2, seed=0)) == names(
        random_allocations(small_problem, budget, count=2, seed=0)
    )


def test_groups_of_matrices_move_together(small_problem: AllocationProblem) -> None:
    """The spread of a layer's or projection's share of bytes is far beyond what independent options would give."""
    low, high = small_problem.smallest_bytes or 0, int(small_problem.nbytes.max(axis=1).sum())
    found = random_allocations(small_problem, (low + high) // 2, count=30, seed=2)
    shares = np.array([[i.nbytes for i in a.items if i.key.projection == "down"] for a in found]).sum(axis=1)
    down = [i for i, s in enumerate(small_problem.specs) if s.key.projection == "down"]
    smallest, largest = small_problem.nbytes[down].min(axis=1).sum(), small_problem.nbytes[down].max(axis=1).sum()
    filled = (shares - smallest) / (largest - smallest)
    assert filled.min() < 0.3
    assert filled.max() > 0.7
