"""The plan's manual high/low recipe."""

from __future__ import annotations

import pytest

from compress_core.allocate import AllocationProblem, layer_sensitivities, manual_allocation, uniform_candidates
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError, InfeasibleBudget
from compress_core.matrix import MatrixKey

HIGH, LOW = CompressionConfig(b_q=4, rank=32), CompressionConfig(b_q=2, rank=0)


def test_the_most_sensitive_layers_get_the_high_config(small_problem: AllocationProblem) -> None:
    budget = next(c.total_bytes for c in uniform_candidates(small_problem) if (c.config.b_q, c.config.rank) == (3, 32))
    recipe = manual_allocation(small_problem, {0: 5.0, 1: 1.0, 2: 7.0, 3: 2.0}, high=HIGH, low=LOW, budget_bytes=budget)
    assert recipe.high_layers + recipe.low_layers == (2, 0, 3, 1)
    assert 0 < len(recipe.high_layers) < 4
    allocation = recipe.allocation
    assert allocation.kind == "manual"
    assert allocation.total_bytes + recipe.unused_bytes == budget
    for item in allocation.items:
        assert item.menu_config == (HIGH if item.key.layer_idx in recipe.high_layers else LOW)
    # one more layer would not fit
    layer_step = sum(
        int(
            small_problem.nbytes[i, small_problem.column_of(HIGH)]
            - small_problem.nbytes[i, small_problem.column_of(LOW)]
        )
        for i, s in enumerate(small_problem.specs)
        if s.key.layer_idx == recipe.low_layers[0]
    )
    assert layer_step > recipe.unused_bytes >= 0


def test_all_layers_high_where_the_budget_allows(small_problem: AllocationProblem) -> None:
    recipe = manual_allocation(small_problem, dict.fromkeys(range(4), 1.0), high=HIGH, low=LOW, budget_bytes=10**9)
    assert recipe.high_layers == (0, 1, 2, 3)
    assert recipe.low_layers == ()


def test_refusals(small_problem: AllocationProblem) -> None:
    with pytest.raises(InfeasibleBudget, match="leaner low config"):
        manual_allocation(small_problem, dict.fromkeys(range(4), 1.0), high=HIGH, low=LOW, budget_bytes=10)
    with pytest.raises(ConfigError, match="no sensitivity for layer 3"):
        manual_allocation(small_problem, dict.fromkeys(range(3), 1.0), high=HIGH, low=LOW, budget_bytes=10**9)


def test_layer_sensitivities_add_up() -> None:
    values = {MatrixKey(1, "q"): 1.0, MatrixKey(0, "down"): 2.0, MatrixKey(1, "down"): 3.0}
    assert layer_sensitivities(values) == {0: 2.0, 1: 4.0}
