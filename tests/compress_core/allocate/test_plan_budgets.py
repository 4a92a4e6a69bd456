"""The plan's budgets on the true shapes of its models: 72B at 18, 20, 22 GB and 7B at 6, 8, 10 GB.

Bytes are those of the serialiser; errors are synthetic, since only bytes decide what fits and what binds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from compress_core.allocate import (
    Allocation,
    AllocationProblem,
    Budget,
    Cell,
    best_uniform,
    optimal_allocation,
    uniform_candidates,
)
from compress_core.analyze import Estimate, GateThresholds, Verdict, gates
from compress_core.config import CompressionConfig
from compress_core.errors import InfeasibleBudget
from compress_core.nbytes import predicted_nbytes
from compress_core.plan.shapes import ModelShapes

MODELS = Path(__file__).parents[3] / "configs" / "models"
GB = 10**9
#: the plan's menu
UP_TO_4 = tuple(CompressionConfig(b_q=b, rank=r) for b in (2, 3, 4) for r in (0, 32, 64, 128, 256))
UP_TO_8 = tuple(CompressionConfig(b_q=b, rank=r) for b in range(2, 9) for r in (0, 64))
#: a matrix left as it is
RAW = CompressionConfig(b_q=16, codebook="raw")
T = GateThresholds()


@cache
def problem(name: str, menu: Sequence[CompressionConfig]) -> AllocationProblem:
    entry = json.loads((MODELS / f"{name}.json").read_text())
    shapes = ModelShapes.from_config(entry["config"], name, "configs/models")
    sensitive = {"down": 4.0, "o": 2.0, "v": 3.0}
    cells, weights = {}, {}
    for spec in shapes.matrices:
        depth = spec.key.layer_idx / shapes.n_layers
        weights[spec.key] = sensitive.get(spec.key.projection, 1.0) * (1.5 - depth)
        for config in menu:
            error = 2.0 ** (-1.9 * config.b_q) * (config.rank + 16) ** -0.1
            cells[spec.key, config.config_hash] = Cell(
                error, predicted_nbytes(config, spec.out_features, spec.in_features)
            )
    return AllocationProblem.from_cells(
        shapes.matrices,
        menu,
        cells,
        weights=weights,
        fixed_bytes=shapes.fixed_bytes,
        original_matrix_bytes=2 * shapes.n_weights,
    )


def gate_verdicts(allocation: Allocation, *, outside: int) -> set[Verdict]:
    """Of the three gates that look at a budget, for a model whose files have exactly the bytes predicted."""
    solution = allocation.solution
    assert solution is not None
    total, budget = allocation.total_bytes + outside, solution.budget + outside
    gain = Estimate(5.0, 4.0, 6.0, n=200)
    return {
        gates.optimal_differs(
            n_configs=len(allocation.counts()), is_uniform=allocation.is_uniform, slack=solution.slack
        ).verdict,
        gates.bytes_match(predicted=total, actual=total, budget=budget, thresholds=T, slack=solution.slack).verdict,
        gates.optimal_beats_uniform(gain, T, phase=4, slack=solution.slack).verdict,
    }


# ---- 72B


@pytest.mark.parametrize("gb", [18, 20, 22])
def test_72b_does_not_fit_as_a_whole_model_and_the_message_says_why(gb: int) -> None:
    found = problem("qwen2-72b", UP_TO_4)
    assert found.fixed_bytes == pytest.approx(4.98 * GB, rel=0.002)
    assert found.smallest_bytes == pytest.approx(17.55 * GB, rel=0.002)
    with pytest.raises(InfeasibleBudget) as caught:
        optimal_allocation(found, Budget.parse(f"{gb} GB", scope="model"))
    message = str(caught.value)
    assert f"{found.fixed_bytes:,} bytes (embeddings, head, norms) are not compressed" in message
    assert f"{gb * GB - found.fixed_bytes:,} bytes for the matrices" in message
    assert f"{found.smallest_bytes:,}" in message
    assert "use scope decoder" in message
    # what it names as the smallest feasible budget is just that
    smallest = caught.value.smallest_bytes
    assert smallest == found.smallest_bytes + found.fixed_bytes > 22 * GB
    assert optimal_allocation(found, Budget.parse(smallest, scope="model")).total_bytes == found.smallest_bytes
    with pytest.raises(InfeasibleBudget):
        optimal_allocation(found, Budget.parse(smallest - 1, scope="model"))


@pytest.mark.parametrize("gb", [18, 20, 22])
def test_72b_is_solved_in_scope_decoder(gb: int) -> None:
    found = problem("qwen2-72b", UP_TO_4)
    allocation = optimal_allocation(found, Budget.parse(f"{gb} GB", scope="decoder"))
    solution = allocation.solution
    assert solution is not None
    assert solution.optimal
    assert not solution.slack
    assert gb * GB * 0.999 <= allocation.total_bytes <= gb * GB
    assert len(allocation.items) == 560
    assert allocation.objective < best_uniform(found, gb * GB).objective
    assert gate_verdicts(allocation, outside=0) == {Verdict.GO}


# ---- 7B


@pytest.mark.parametrize("scope", ["model", "decoder"])
@pytest.mark.parametrize("gb", [6, 8, 10])
def test_7b_with_at_most_4_bits_is_slack_and_its_gates_are_not_decidable(gb: int, scope: str) -> None:
    found = problem("qwen2-7b", UP_TO_4)
    largest = int(found.nbytes.max(axis=1).sum()) + found.fixed_bytes
    assert largest < 6 * GB
    allocation = optimal_allocation(found, Budget.parse(f"{gb} GB", scope=scope))
    assert allocation.solution is not None
    assert allocation.solution.slack
    assert allocation.solution.unused_bytes > 0
    outside = found.fixed_bytes if scope == "model" else 0
    assert gate_verdicts(allocation, outside=outside) == {Verdict.NOT_DECIDABLE}


@pytest.mark.parametrize("gb", [6, 8])
def test_7b_binds_with_up_to_8_bits(gb: int) -> None:
    found = problem("qwen2-7b", UP_TO_8)
    allocation = optimal_allocation(found, Budget.parse(f"{gb} GB", scope="model"))
    assert allocation.solution is not None
    assert allocation.solution.optimal
    assert not allocation.solution.slack
    assert max(item.config.b_q for item in allocation.items) > 4
    assert gb * GB * 0.999 <= allocation.total_bytes + found.fixed_bytes <= gb * GB
    assert gate_verdicts(allocation, outside=found.fixed_bytes) == {Verdict.GO}


def test_7b_at_10_gb_stays_slack_with_8_bits_and_binds_once_matrices_may_stay_as_they_are() -> None:
    """8 bits everywhere with rank 64 are 8.8 GB."""
    budget = Budget.parse("10 GB", scope="model")
    slack = optimal_allocation(problem("qwen2-7b", UP_TO_8), budget)
    assert slack.solution is not None
    assert slack.solution.slack
    assert slack.total_bytes + problem("qwen2-7b", UP_TO_8).fixed_bytes == pytest.approx(8.8 * GB, rel=0.01)
    assert gate_verdicts(slack, outside=problem("qwen2-7b", UP_TO_8).fixed_bytes) == {Verdict.NOT_DECIDABLE}
    raw = problem("qwen2-7b", (*UP_TO_8, RAW))
    binding = optimal_allocation(raw, budget)
    assert binding.solution is not None
    assert not binding.solution.slack
    assert gate_verdicts(binding, outside=raw.fixed_bytes) == {Verdict.GO}


# ---- the ways to say a budget


def test_one_budget_in_every_way_of_saying_it() -> None:
    found = problem("qwen2-7b", UP_TO_8)
    weights = found.n_weights
    assert weights == 6_525_288_448  # 28 layers of Qwen2-7B
    nbytes = weights * 3 // 8
    by_bits = Budget.parse("3 bpw")
    ways = [
        Budget.parse(nbytes),
        Budget.parse(f"{nbytes} bytes"),
        Budget.parse(f"{nbytes / GB:.9f} GB"),
        by_bits,
        Budget.parse("18.75%"),
        Budget.parse(nbytes + found.fixed_bytes, scope="model"),
        Budget.parse("3 bpw", scope="model"),
    ]
    assert {way.matrix_bytes(found) for way in ways} == {nbytes}
    choices = [optimal_allocation(found, way) for way in (ways[0], by_bits)]
    assert choices[0].configs == choices[1].configs
    assert choices[0].bits_per_weight <= 3
    # of the whole model a fraction counts everything that is stored, before and after
    whole = Budget.parse("50%", scope="model").matrix_bytes(found)
    assert whole == (2 * weights + found.fixed_bytes) // 2 - found.fixed_bytes


def test_the_bytes_of_a_uniform_config_bind_and_are_never_exceeded() -> None:
    found = problem("qwen2-7b", UP_TO_8)
    for candidate in uniform_candidates(found)[1:6:2]:
        text = f"uniform:b_q={candidate.config.b_q},rank={candidate.config.rank}"
        allocation = optimal_allocation(found, Budget.parse(text))
        assert allocation.total_bytes <= candidate.total_bytes
        assert allocation.objective < candidate.objective
        assert allocation.solution is not None
        assert not allocation.solution.slack
