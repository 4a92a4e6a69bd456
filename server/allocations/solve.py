"""The kinds of allocation: optimal, best uniform, uniform, manual, overrides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compress_core.allocate import (
    Allocation,
    AllocationProblem,
    Sensitivity,
    allocation_from_choice,
    best_uniform,
    layer_sensitivities,
    manual_allocation,
    optimal_allocation,
    overrides_from_yaml,
    uniform_allocation,
    uniform_candidates,
)
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError, InfeasibleBudget
from compress_core.matrix import MatrixKey
from results_db.params import AllocateParams
from server.allocations.table import Measured
from server.kit.checks import check_config
from server.kit.problem import Problem, core_problem, invalid


@dataclass(frozen=True, eq=False, slots=True)
class Choice:
    """What was chosen and what is worth telling of it."""

    allocation: Allocation
    #: whether Σ a·ε was minimised
    minimised: bool
    details: dict[str, Any] = field(default_factory=dict)


def choose(
    params: AllocateParams,
    measured: Measured,
    sensitivities: Mapping[MatrixKey, Sensitivity],
    matrix_budget: int | None,
) -> Choice:
    """Choose as ``params.kind`` says; ``matrix_budget`` in bytes of the matrices.

    Raises:
        Problem: a field that this kind needs is missing or wrong.
        InfeasibleBudget: nothing fits.
    """
    match params.kind:
        case "uniform":
            config = _needed(params, "uniform")
            problem = measured.problem([config], weights=None, predict=True)
            chosen = uniform_allocation(problem, config, budget_bytes=matrix_budget)
            return Choice(_fitting(chosen, matrix_budget), minimised=False)
        case "manual":
            return _manual(params, measured, sensitivities, _budget(matrix_budget))
        case "overrides":
            return _overrides(params, measured, matrix_budget)
        case "best_uniform":
            problem = _problem(params, measured, sensitivities)
            chosen = best_uniform(problem, _budget(matrix_budget))
            return Choice(chosen, minimised=True, details={"candidates": _candidates(problem, _budget(matrix_budget))})
        case "optimal":
            problem = _problem(params, measured, sensitivities)
            return _optimal(problem, _budget(matrix_budget))
        case _:
            raise invalid("kind", f"kind {params.kind} is not served yet")


def _fitting(chosen: Allocation, matrix_budget: int | None) -> Allocation:
    """A given allocation, if it keeps to the budget that is given with it.

    Raises:
        InfeasibleBudget: it does not.
    """
    if matrix_budget is not None and chosen.total_bytes > matrix_budget:
        raise InfeasibleBudget(
            f"a budget of {matrix_budget:,} bytes is too small: this allocation takes {chosen.total_bytes:,}. Allow at "
            "least that, or choose smaller configs",
            smallest_bytes=chosen.total_bytes,
        )
    return chosen


def _optimal(problem: AllocationProblem, budget: int) -> Choice:
    chosen = optimal_allocation(problem, budget)
    solution = chosen.solution
    assert solution is not None
    details = {
        "proof": solution.proof,
        "gap": solution.gap,
        "tolerance": solution.tolerance,
        "core_size": solution.core_size,
        "total_states": solution.total_states,
        "unused_bytes": solution.unused_bytes,
        "slack": solution.slack,
        "candidates": _candidates(problem, budget),
    }
    return Choice(chosen, minimised=True, details=details)


def _manual(
    params: AllocateParams, measured: Measured, sensitivities: Mapping[MatrixKey, Sensitivity], budget: int
) -> Choice:
    high, low = _needed(params, "high"), _needed(params, "low")
    weights = _weights(measured, sensitivities)
    menu = [high] if high.config_hash == low.config_hash else [high, low]
    problem = measured.problem(menu, weights=None, predict=True)
    recipe = manual_allocation(problem, layer_sensitivities(weights), high=high, low=low, budget_bytes=budget)
    details = {
        "high_layers": list(recipe.high_layers),
        "low_layers": list(recipe.low_layers),
        "unused_bytes": recipe.unused_bytes,
    }
    return Choice(recipe.allocation, minimised=False, details=details)


def _overrides(params: AllocateParams, measured: Measured, matrix_budget: int | None) -> Choice:
    if params.overrides_yaml is None:
        raise invalid("overrides_yaml", "kind overrides needs the YAML of overrides")
    try:
        configs = overrides_from_yaml(params.overrides_yaml, measured.specs)
    except ConfigError as error:
        raise core_problem(error, "overrides_yaml") from error
    missing = [str(spec.key) for spec in measured.specs if spec.key not in configs]
    if missing:
        raise invalid("overrides_yaml", f"matrix {missing[0]} has no config ({len(missing)} are missing)")
    menu = list({config.config_hash: config for config in configs.values()}.values())
    problem = measured.problem(menu, weights=None, predict=True)
    choice = [problem.column_of(configs[spec.key]) for spec in measured.specs]
    chosen = allocation_from_choice(problem, choice, kind="overrides", budget_bytes=matrix_budget)
    return Choice(_fitting(chosen, matrix_budget), minimised=False)


def _problem(
    params: AllocateParams, measured: Measured, sensitivities: Mapping[MatrixKey, Sensitivity]
) -> AllocationProblem:
    """The table of measured cells over the menu, weighted as the objective says."""
    menu = (
        [check_config(fields, f"menu.{i}") for i, fields in enumerate(params.menu)]
        if params.menu is not None
        else sorted(measured.configs.values(), key=lambda c: (c.codebook, c.b_q, c.rank, c.config_hash))
    )
    if not menu:
        raise Problem(
            409, "nothing-measured", "no config is measured under this calibration: POST /api/v1/sweeps first"
        )
    menu = list({config.config_hash: config for config in menu}.values())
    weights = _weights(measured, sensitivities) if params.objective == "kl" else None
    return measured.problem(menu, weights=weights)


def _weights(measured: Measured, sensitivities: Mapping[MatrixKey, Sensitivity]) -> dict[MatrixKey, float]:
    missing = [str(spec.key) for spec in measured.specs if spec.key not in sensitivities]
    if missing:
        raise Problem(
            409,
            "sensitivity-missing",
            f"matrix {missing[0]} has no sensitivity ({len(missing)} of {len(measured.specs)} have none): POST "
            "/api/v1/sensitivities first, or take objective error",
        )
    return {spec.key: sensitivities[spec.key].value for spec in measured.specs}


def _needed(params: AllocateParams, name: str) -> CompressionConfig:
    fields = getattr(params, name)
    if fields is None:
        raise invalid(name, f"kind {params.kind} needs a config here")
    return check_config(fields, name)


def _budget(matrix_budget: int | None) -> int:
    if matrix_budget is None:
        raise invalid("budget", "this kind of allocation needs a budget")
    return matrix_budget


def _candidates(problem: AllocationProblem, budget: int) -> list[dict[str, Any]]:
    """The uniform allocations of the menu, by rising bytes."""
    return [
        {
            "config": candidate.config.to_dict(),
            "matrix_bytes": candidate.total_bytes,
            "objective_value": candidate.objective,
            "fits": candidate.total_bytes <= budget,
        }
        for candidate in uniform_candidates(problem)
    ]
