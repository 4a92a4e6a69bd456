"""What the allocations of a study may hold before they are made: their configs, their number, their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress_core.config import CompressionConfig
from compress_core.nbytes import predicted_nbytes
from compress_core.plan import ModelShapes
from results_db.params import BudgetSpec
from results_db.states import JobKind
from server.allocations.budget import budget_bytes, uniform_bytes
from server.studies.steps import Step


@dataclass(frozen=True, slots=True)
class Menu:
    """What one step's allocations are made of."""

    configs: tuple[CompressionConfig, ...]
    #: allocations that the step makes
    count: int
    #: configs that a matrix has in them at most
    per_matrix: int
    #: of the largest packed model, everything stored counted
    nbytes: int

    def __add__(self, other: Menu) -> Menu:
        configs = tuple(dict.fromkeys([*self.configs, *other.configs]))
        per_matrix = min(len(configs), self.per_matrix + other.per_matrix)
        return Menu(configs, self.count + other.count, per_matrix, max(self.nbytes, other.nbytes))


def menu_of(step: Step, steps: Mapping[str, Step], shapes: ModelShapes, *, scope: str) -> Menu:
    """The menu of an allocate step; of a winner, that of all that were in the contest; of a validate step, the sum."""
    if step.kind == JobKind.VALIDATE or step.params["kind"] == "winner":
        found = sum_of(step, steps, shapes, scope=scope)
        # one of them wins
        return found if step.kind == JobKind.VALIDATE else Menu(found.configs, 1, 1, found.nbytes)
    params = step.params
    named = [params[name] for name in ("uniform", "high", "low") if params.get(name)]
    configs = tuple(CompressionConfig.from_dict(fields) for fields in params.get("menu") or named)
    count = params.get("count") or 1
    return Menu(configs, count, min(count, len(configs)), _nbytes(params, configs, shapes, scope))


def sum_of(step: Step, steps: Mapping[str, Step], shapes: ModelShapes, *, scope: str) -> Menu:
    """Everything that a validate step looks at, or that a winner was chosen from."""
    name = "validation_id" if "validation_id" in step.inputs else "allocation_ids"
    first, *rest = (menu_of(steps[source.step], steps, shapes, scope=scope) for source in step.sources_of(name))
    for menu in rest:
        first += menu
    return first


def _nbytes(params: dict[str, Any], configs: tuple[CompressionConfig, ...], shapes: ModelShapes, scope: str) -> int:
    outside = shapes.fixed_bytes
    if params["kind"] == "uniform":
        return outside + uniform_bytes(configs[0], shapes.matrices)
    most = outside + sum(
        max(
            predicted_nbytes(config.clamped(spec.out_features, spec.in_features), spec.out_features, spec.in_features)
            for config in configs
        )
        for spec in shapes.matrices
    )
    budget = BudgetSpec.model_validate(params["budget"])
    inside = scope == "model"
    original = shapes.original_bytes - shapes.fixed_bytes
    given = budget_bytes(
        budget, shapes.matrices, outside=outside if inside else 0, original_matrix_bytes=max(original, 0)
    )
    return min(most, given if inside else given + outside)
