"""The figures of a study by name: rows from the database, spec from web.figures."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.orm import Session

from results_db.tables import Job, Model, Study
from web.figures import (
    Figure,
    allocation_figure,
    errors_figure,
    estimates_figure,
    fidelity_figure,
    fit_figure,
    forms_figure,
    frontier_figure,
    outcome_figure,
    prediction_figure,
    sensitivity_figure,
)
from web.queries.choice_rows import frontier_points, validated
from web.queries.figure_rows import anchor_results, chosen_configs, error_cells, fitted, outcomes
from web.queries.model_rows import clusters, estimates, fidelities, forms

_Build = Callable[[Session, Model, list[Job]], Figure]


def _fit(session: Session, model: Model, jobs: list[Job]) -> Figure:
    cells, fit = fitted(session, jobs)
    if fit is None:
        return fit_figure(cells)
    return fit_figure(cells, form=fit.form, r2=fit.r2, cv_error=fit.cv_error)


def _prediction(session: Session, model: Model, jobs: list[Job]) -> Figure:
    return prediction_figure(*validated(session, jobs))


def _frontier(session: Session, model: Model, jobs: list[Job]) -> Figure:
    points, unit, missing = frontier_points(session, jobs)
    return frontier_figure(points, unit=unit, missing=missing)


#: in the order of the page: the first column, the second, and what is folded
FIGURES: dict[str, _Build] = {
    "outcome": lambda session, model, jobs: outcome_figure(outcomes(session, model, jobs)),
    "prediction": _prediction,
    "errors": lambda session, model, jobs: errors_figure(error_cells(session, model, jobs), clusters(session, jobs)),
    "allocation": lambda session, model, jobs: allocation_figure(chosen_configs(session, model, jobs)),
    "frontier": _frontier,
    "sensitivity": lambda session, model, jobs: sensitivity_figure(anchor_results(session, model, jobs)),
    "fit": _fit,
    "estimates": lambda session, model, jobs: estimates_figure(estimates(session, model, jobs)),
    "forms": lambda session, model, jobs: forms_figure(forms(session, jobs)),
    "fidelity": lambda session, model, jobs: fidelity_figure(fidelities(session, jobs)),
}

#: columns of the page, and the figures below them that are folded at first
COLUMNS = (("outcome", "prediction", "errors"), ("allocation", "frontier", "sensitivity", "fit"))
FOLDED = ("estimates", "forms", "fidelity")


def study_figures(session: Session, study: Study) -> dict[str, Figure]:
    """All figures of a study, by name."""
    model, jobs = session.get_one(Model, study.model_id), _jobs(session, study.id)
    return {name: build(session, model, jobs) for name, build in FIGURES.items()}


def study_figure(session: Session, study_id: str, name: str) -> Figure | None:
    """One figure; None: no such study.

    Raises:
        KeyError: no figure of that name.
    """
    study = session.get(Study, study_id)
    if study is None:
        return None
    return FIGURES[name](session, session.get_one(Model, study.model_id), _jobs(session, study_id))


def _jobs(session: Session, study_id: str) -> list[Job]:
    return list(session.scalars(select(Job).where(Job.study_id == study_id).order_by(Job.position, Job.id)))
