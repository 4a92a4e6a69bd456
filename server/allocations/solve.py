"""The kinds of allocation that are chosen from what is measured: what each of them chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from compress_core.allocate import (
    Allocation,
    AllocationProblem,
    AllocationSolution,
    Constraints,
    WhatIf,
    allocation_from_choice,
    baseline_allocation,
    best_uniform,
    layer_sensitivities,
    manual_allocation,
    optimal_allocation,
    overrides_from_yaml,
    random_allocations,
    reduced_costs,
    uniform_allocation,
    uniform_candidates,
)
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError, InfeasibleBudget
from compress_core.matrix import MatrixKey
from results_db.params import AllocateParams
from server.allocations.budget import budget_bytes
from server.allocations.constraints import check_constraints, refuse_constraints
from server.allocations.table import Measured
from server.allocations.weights import Weights, metric_of
from server.kit.checks import check_config
from server.kit.problem import Problem, core_problem, invalid

#: of kind random, where the request does not say
DEFAULT_COUNT = 20


@dataclass(frozen=True, eq=False, slots=True)
class Choice:
    """What was chosen and what is worth telling of it."""

    allocation: Allocation
    #: whether Σ a·ε was minimised
    minimised: bool
    #: of the row
    kind: str
    details: dict[str, Any] = field(default_factory=dict)
    #: at least what the next best config of each matrix costs, in the order of the matrices; None where unproven
    regret: Mapping[MatrixKey, float] = field(default_factory=dict)
    #: of a random allocation
    seed: int | None = None


@dataclass(frozen=True, eq=False)
class Chooser:
    """Chooses as ``params.kind`` says."""

    params: AllocateParams
    measured: Measured
    #: of the objective's method; None where the objective weighs nothing
    weights: Weights | None
    #: of the layers, for the manual recipe
    kl: Weights
    #: in bytes of the matrices
    matrix_budget: int | None

    def choose(self) -> list[Choice]:
        """One choice; of kinds random and uniforms several.

        Raises:
            Problem: a field that this kind needs is missing or wrong.
            InfeasibleBudget: nothing fits.
        """
        if self.params.kind != "optimal":
            refuse_constraints(self.params.constraints, self.params.kind)
        match self.params.kind:
            case "uniform":
                config = self._needed("uniform")
                problem = self.measured.problem([config], predict=True)
                chosen = uniform_allocation(problem, config, budget_bytes=self.matrix_budget)
                return [Choice(self._fitting(chosen), minimised=False, kind="uniform")]
            case "manual":
                return [self._manual()]
            case "overrides":
                return [self._overrides()]
            case "best_uniform":
                chosen = best_uniform(self.problem, self.budget)
                details = {"candidates": self._candidates()}
                return [Choice(chosen, minimised=True, kind="best_uniform", details=details)]
            case "uniforms":
                return self._uniforms()
            case "random":
                return self._random()
            case "greedy" | "minimax" | "discretised_dp" as kind:
                found = baseline_allocation(self.problem, self.budget, kind)
                compared = {"optimum": found.optimum.objective, "loss": found.loss}
                return [Choice(found.allocation, minimised=True, kind=kind, details=compared)]
            case "optimal":
                return [self._optimal()]
            case "winner":
                raise AssertionError("a winner is copied, not chosen")

    @cached_property
    def menu(self) -> tuple[CompressionConfig, ...]:
        """Configs to choose from."""
        fields = self.params.menu
        if fields is None:
            return self.measured.configs
        found = [check_config(config, f"menu.{i}") for i, config in enumerate(fields)]
        return tuple({config.config_hash: config for config in found}.values())

    @cached_property
    def problem(self) -> AllocationProblem:
        """The table of measured cells over the menu, weighted as the objective says."""
        if not self.menu:
            raise Problem(
                409, "nothing-measured", "no config is measured under this calibration: POST /api/v1/sweeps first"
            )
        weights = None if self.weights is None else self.weights.table(self.measured.specs, self.menu)
        return self.measured.problem(self.menu, weights=weights, metric=metric_of(self.params.objective))

    @property
    def budget(self) -> int:
        if self.matrix_budget is None:
            raise invalid("budget", "this kind of allocation needs a budget")
        return self.matrix_budget

    def _optimal(self) -> Choice:
        constraints = check_constraints(self.params.constraints, self.problem)
        chosen = optimal_allocation(self.problem, self.budget, constraints=constraints or None)
        solution = chosen.solution
        assert solution is not None
        details = {
            "proof": solution.proof,
            "gap": solution.gap,
            "tolerance": solution.tolerance,
            "core_size": solution.core_size,
            "total_states": solution.total_states,
            "unused_bytes": solution.unused_bytes,
            "slack": self._is_slack(solution, constraints or None),
            "candidates": self._candidates(),
        }
        regret = self._regret(chosen, constraints)
        return Choice(chosen, minimised=True, kind="optimal", details=details, regret=regret)

    def _is_slack(self, solution: AllocationSolution, constraints: Constraints | None) -> bool:
        """Whether the budget binds nothing as it was given, even where the bytes of a rival do."""
        params, measured = self.params, self.measured
        if solution.slack or params.budget is None or params.budget_allocation_id is None:
            return solution.slack
        outside = measured.fixed_bytes if params.scope == "model" else 0
        given = budget_bytes(
            params.budget,
            measured.specs,
            outside=outside,
            original_matrix_bytes=measured.original_matrix_bytes,
        )
        alone = optimal_allocation(self.problem, given - outside, constraints=constraints).solution
        assert alone is not None
        return alone.slack

    def _regret(self, chosen: Allocation, constraints: Constraints) -> dict[MatrixKey, float]:
        """The bound of every allocation with a matrix's config changed, less the objective; never below 0."""
        solution, problem = chosen.solution, self.problem
        assert solution is not None
        if constraints:
            found = WhatIf(problem, self.budget, constraints, solution=solution).regrets()
            return {r.key: r.at_least for r in found if r.runner_up is not None}
        # the same without groups or masks: all matrices at once
        table, rows = problem.objective_table, range(len(problem.specs))
        errors, nbytes = table[rows, solution.choice], problem.nbytes[rows, solution.choice]
        costs = reduced_costs(table, problem.nbytes, solution.multiplier)
        # the chosen config, and those that a small matrix clamps to the same one
        costs[(table == errors[:, None]) & (problem.nbytes == nbytes[:, None])] = np.inf
        least = np.maximum(costs.min(axis=1) - solution.gap, 0.0)
        return {spec.key: float(x) for spec, x in zip(problem.specs, least, strict=True) if np.isfinite(x)}

    def _uniforms(self) -> list[Choice]:
        fitting = [c for c in uniform_candidates(self.problem) if c.total_bytes <= self.budget]
        if not fitting:
            best_uniform(self.problem, self.budget)  # says why, and which budget would do
        best = sorted(fitting, key=lambda c: (c.objective, c.total_bytes))[: self.params.count]
        return [
            Choice(
                uniform_allocation(self.problem, candidate.config, budget_bytes=self.budget),
                minimised=True,
                kind="uniform",
                details={"place": place, "fitting": len(fitting)},
            )
            for place, candidate in enumerate(best, start=1)
        ]

    def _random(self) -> list[Choice]:
        params = self.params
        count = params.count or DEFAULT_COUNT
        if params.near > count:
            raise invalid("near", f"{params.near} of {count} allocations: give a number from 0 to {count}")
        if params.within >= 1:
            raise invalid("within", "give a share of the budget below 1")
        try:
            found = random_allocations(
                self.problem, self.budget, count=count, seed=params.seed, within=params.within, near=params.near
            )
        except ConfigError as error:
            raise core_problem(error, "within") from error
        details = {"within": params.within}
        return [
            Choice(one, minimised=False, kind=one.kind, details=details | {"place": place}, seed=params.seed)
            for place, one in enumerate(found, start=1)
        ]

    def _manual(self) -> Choice:
        high, low = self._needed("high"), self._needed("low")
        self.kl.require(self.measured.specs)
        menu = [high] if high.config_hash == low.config_hash else [high, low]
        problem = self.measured.problem(menu, predict=True)
        layers = layer_sensitivities({key: self.kl.by_matrix[key] for key in self.measured.keys})
        recipe = manual_allocation(problem, layers, high=high, low=low, budget_bytes=self.budget)
        details = {
            "high_layers": list(recipe.high_layers),
            "low_layers": list(recipe.low_layers),
            "unused_bytes": recipe.unused_bytes,
        }
        return Choice(recipe.allocation, minimised=False, kind="manual", details=details)

    def _overrides(self) -> Choice:
        if self.params.overrides_yaml is None:
            raise invalid("overrides_yaml", "kind overrides needs the YAML of overrides")
        try:
            configs = overrides_from_yaml(self.params.overrides_yaml, self.measured.specs)
        except ConfigError as error:
            raise core_problem(error, "overrides_yaml") from error
        missing = [str(key) for key in self.measured.keys if key not in configs]
        if missing:
            raise invalid("overrides_yaml", f"matrix {missing[0]} has no config ({len(missing)} are missing)")
        menu = list({config.config_hash: config for config in configs.values()}.values())
        columns = {config.config_hash: column for column, config in enumerate(menu)}
        problem = self.measured.problem(menu, predict=True)
        choice = [columns[configs[key].config_hash] for key in self.measured.keys]
        chosen = allocation_from_choice(problem, choice, kind="overrides", budget_bytes=self.matrix_budget)
        return Choice(self._fitting(chosen), minimised=False, kind="overrides")

    def _needed(self, name: str) -> CompressionConfig:
        fields = getattr(self.params, name)
        if fields is None:
            raise invalid(name, f"kind {self.params.kind} needs a config here")
        return check_config(fields, name)

    def _fitting(self, chosen: Allocation) -> Allocation:
        """A given allocation, if it keeps to the budget that is given with it.

        Raises:
            InfeasibleBudget: it does not.
        """
        if self.matrix_budget is not None and chosen.total_bytes > self.matrix_budget:
            raise InfeasibleBudget(
                f"a budget of {self.matrix_budget:,} bytes is too small: this allocation takes "
                f"{chosen.total_bytes:,}. Allow at least that, or choose smaller configs",
                smallest_bytes=chosen.total_bytes,
            )
        return chosen

    def _candidates(self) -> list[dict[str, Any]]:
        """The uniform allocations of the menu, by rising bytes."""
        return [
            {
                "config": candidate.config.to_dict(),
                "matrix_bytes": candidate.total_bytes,
                "objective_value": candidate.objective,
                "fits": candidate.total_bytes <= self.budget,
            }
            for candidate in uniform_candidates(self.problem)
        ]
