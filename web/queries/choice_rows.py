"""Rows of the figures about the choice: what was validated, and the frontier it was chosen on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from compress_core.errors import CompressCoreError
from results_db.errors import NotFound
from results_db.states import JobKind
from results_db.tables import Allocation, Job, Validation, ValidationItem
from server.allocations.prices import answer_frontier
from server.allocations.schemas import FrontierRequest
from server.kit.problem import Problem
from web.figures import Agreement, FrontierPoint, Validated
from web.formatting import config_label
from web.queries.steps import model_label, results, several_budgets

#: validations in which the study's choice is checked
_CHECKS = ("choice", "reanchored")
#: of the line that is drawn
_POINTS = 160
_ROLES = {"optimal": "optimal", "reanchored": "optimal", "uniform": "uniform"}


def validated(session: Session, jobs: Iterable[Job]) -> tuple[list[Validated], list[Agreement]]:
    """The allocations that were checked at each budget, and how true their predictions were.

    What a second check adds to the first (the re-anchored optimum) stands beside it; they use the same windows.
    """
    jobs = list(jobs)
    several = several_budgets(jobs)
    items: dict[tuple[str, str], Validated] = {}
    agreements = []
    for step, validation_id in results(jobs, JobKind.VALIDATE, "validation_id").items():
        base, _, suffix = step.partition(":")[2].partition("@")
        if base not in _CHECKS:
            continue
        validation = session.get_one(Validation, validation_id)
        budget = f"budget {suffix or 1}" if several else "equal bytes"
        if base == _CHECKS[0]:
            agreements.append(_agreement(validation, budget if several else ""))
        rows = select(ValidationItem).where(ValidationItem.validation_id == validation_id)
        for row in session.scalars(rows.order_by(ValidationItem.position)):
            if row.allocation_id is None:
                continue
            name = row.name.replace(f"@{suffix}", "", 1) if suffix else row.name
            role = "random" if row.kind == "random" else _ROLES.get(name, "other")
            found = Validated(budget, name, role, row.matrix_bytes, row.predicted_kl, row.kl, row.kl_se, row.ppl)
            items.setdefault((budget, name), found)
    return list(items.values()), agreements


def frontier_points(session: Session, jobs: Iterable[Job]) -> tuple[list[FrontierPoint], str, str]:
    """The frontier that the study's optima lie on, by what is measured now, the unit of its objective, and, where there
    is an optimum but no frontier, why not.
    """
    jobs = list(jobs)
    made = results(jobs, JobKind.ALLOCATE, "allocation_id")
    optima = {step: id_ for step, id_ in made.items() if step.partition(":")[2].partition("@")[0] == "optimal"}
    job = next((job for job in jobs if job.step in optima), None)
    if job is None:
        return [], "", ""
    asked = {name: job.params.get(name) for name in ("model_id", "calibration_id", "objective", "scope", "menu")}
    try:
        request = FrontierRequest(points=_POINTS, **{name: value for name, value in asked.items() if value is not None})
        found = answer_frontier(session, request)
    except (Problem, NotFound, CompressCoreError, ValidationError) as error:
        return [], "", str(error)
    line = [_point("frontier", "frontier", point) for point in found["points"]]
    ladder = [_point(config_label(point["config"]), "uniform", point) for point in found["uniform"]]
    several = several_budgets(jobs)
    chosen = []
    for step, allocation_id in optima.items():
        row = session.get(Allocation, allocation_id)
        if row is not None and row.objective_value is not None:
            name = model_label(step.partition(":")[2], several=several)
            chosen.append(FrontierPoint(name, "optimal", row.matrix_bytes, row.bits_per_weight, row.objective_value))
    unit = "Σ of errors" if request.objective == "error" else "nats of KL a token"
    return [*chosen, *ladder, *line], unit, ""


def _point(name: str, role: str, found: dict[str, Any]) -> FrontierPoint:
    return FrontierPoint(name, role, found["matrix_bytes"], found["bits_per_weight"], found["objective_value"])


def _agreement(validation: Validation, budget: str) -> Agreement:
    return Agreement(
        budget,
        validation.n_windows,
        validation.spearman,
        validation.spearman_low,
        validation.spearman_high,
        validation.log_slope,
        validation.kappa,
        validation.calibrated,
    )
