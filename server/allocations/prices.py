"""Questions about allocations that are answered and not stored: the whole frontier, and what-if."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from compress_core.allocate import AllocationProblem, Constraints, Frontier, WhatIf, frontier, uniform_candidates
from compress_core.allocate.constrained import constrained
from compress_core.allocate.what_if import Price
from compress_core.errors import ConfigError, InfeasibleBudget
from compress_core.matrix import MatrixKey
from results_db.params import AllocateParams
from results_db.tables import Model
from server.allocations.constraints import check_constraints, from_menu
from server.allocations.schemas import FrontierRequest, WhatIfRequest
from server.allocations.service import in_scope, prepare
from server.allocations.solve import Chooser
from server.kit.checks import check_calibration, check_config
from server.kit.problem import core_problem, invalid
from server.kit.rows import get_row


def answer_frontier(session: Session, request: FrontierRequest) -> dict[str, Any]:
    """schemas.FrontierAnswer.

    Raises:
        NotFound, Problem: something that the request names is missing or wrong.
        ConfigError: a matrix has no measured config.
    """
    chooser, _, outside = _prepared(session, request.params())
    problem = chooser.problem
    found = _frontier(problem, check_constraints(request.constraints, problem))
    kept = _spread(found.total_bytes, request.points)
    bits = 8 / problem.n_weights
    return {
        "objective": request.objective,
        "scope": request.scope,
        "original_matrix_bytes": problem.original_bytes,
        "fixed_bytes": problem.fixed_bytes,
        "n_points": len(found.total_bytes),
        "points": [
            {
                "matrix_bytes": nbytes,
                "total_bytes": nbytes + outside,
                "bits_per_weight": nbytes * bits,
                "objective_value": objective,
                "shadow_price": price,
            }
            for nbytes, objective, price in zip(
                found.total_bytes[kept].tolist(),
                found.objective[kept].tolist(),
                found.multiplier[kept].tolist(),
                strict=True,
            )
        ],
        "uniform": [
            {
                "config": candidate.config.to_dict(),
                "matrix_bytes": candidate.total_bytes,
                "total_bytes": candidate.total_bytes + outside,
                "bits_per_weight": candidate.total_bytes * bits,
                "objective_value": candidate.objective,
                "lower_bound": found.lower_bound(candidate.total_bytes),
            }
            for candidate in uniform_candidates(problem)
        ],
    }


def answer_what_if(session: Session, request: WhatIfRequest) -> dict[str, Any]:
    """schemas.WhatIfAnswer.

    Raises:
        NotFound, Problem: something that the request names is missing or wrong.
        InfeasibleBudget: nothing fits, whatever the questions.
    """
    chooser, budget, outside = _prepared(session, request.params())
    problem, matrix_budget = chooser.problem, chooser.budget
    keys = {str(key): key for key in chooser.measured.keys}
    pins = [
        (
            _matrix(keys, pin.matrix, f"pins.{i}.matrix"),
            check_config(from_menu(pin.config, problem.menu, f"pins.{i}"), f"pins.{i}.config"),
        )
        for i, pin in enumerate(request.pins)
    ]
    regrets = [_matrix(keys, name, f"regrets.{i}") for i, name in enumerate(request.regrets)]
    try:
        asked = WhatIf(problem, matrix_budget, check_constraints(request.constraints, problem))
    except InfeasibleBudget as error:
        raise in_scope(error, budget, outside) from error
    solution = asked.solution

    def price(field: str, question: Callable[[], Price]) -> dict[str, Any]:
        try:
            return _told(question(), solution.total_bytes)
        except InfeasibleBudget as error:
            return {"feasible": False, "smallest_bytes": error.smallest_bytes + outside}
        except ConfigError as error:
            raise core_problem(error, field) from error

    second = asked.second_best() if request.second_best else None
    return {
        "objective": request.objective,
        "scope": request.scope,
        "budget_bytes": matrix_budget + outside,
        "objective_value": solution.objective,
        "lower_bound": solution.lower_bound,
        "optimal": solution.optimal,
        "matrix_bytes": solution.total_bytes,
        "total_bytes": solution.total_bytes + outside,
        "shadow_price": solution.multiplier,
        "shadow_price_per_mb": asked.shadow_price_per_mb,
        "pins": [
            {"matrix": str(key), "config": config.to_dict()}
            | price(f"pins.{i}", lambda key=key, config=config: asked.pin(key, config))  # type: ignore[misc]
            for i, (key, config) in enumerate(pins)
        ],
        "more_bytes": [
            {"bytes": nbytes} | price(f"more_bytes.{i}", lambda nbytes=nbytes: asked.more_bytes(nbytes))  # type: ignore[misc]
            for i, nbytes in enumerate(request.more_bytes)
        ],
        "regrets": [
            {"matrix": str(key)} | price(f"regrets.{i}", lambda key=key: asked.other_than_chosen(key))  # type: ignore[misc]
            for i, key in enumerate(regrets)
        ],
        "second_best": None if second is None else _told(second, solution.total_bytes),
    }


def _prepared(session: Session, params: AllocateParams) -> tuple[Chooser, int | None, int]:
    model = get_row(session, Model, params.model_id)
    calibration_id = check_calibration(session, model.id, params.calibration_id).id
    return prepare(session, model, params, calibration_id)


def _frontier(problem: AllocationProblem, constraints: Constraints) -> Frontier:
    if constraints.max_configs is not None:
        raise invalid("constraints.max_configs", "a frontier is of any number of configs: leave it out")
    table = constrained(problem, constraints).merged()
    return frontier(table.errors, table.nbytes)


def _spread(nbytes: NDArray[np.int64], most: int | None) -> NDArray[np.int64]:
    """Indices of at most so many points: both ends, and those next to even steps in bytes."""
    if most is None or most >= len(nbytes):
        return np.arange(len(nbytes))
    steps = np.linspace(nbytes[0], nbytes[-1], most)
    return np.unique(np.abs(nbytes[:, None] - steps[None, :]).argmin(axis=0))


def _matrix(keys: dict[str, MatrixKey], name: str, field: str) -> MatrixKey:
    if name not in keys:
        raise invalid(field, f"the model has no matrix {name!r}: write LAYER.PROJECTION", slug="unknown-matrix")
    return keys[name]


def _told(price: Price, first_bytes: int) -> dict[str, Any]:
    return {
        "feasible": True,
        "difference": price.difference,
        "at_least": price.at_least,
        "at_most": price.at_most,
        "proven": price.proven,
        "objective_value": price.objective,
        "matrix_bytes": price.total_bytes,
        "extra_bytes": price.total_bytes - first_bytes,
        "changed": _names(price.changed),
    }


def _names(keys: Sequence[MatrixKey]) -> list[str]:
    return [str(key) for key in keys]
