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
    fit_figure,
    outcome_figure,
    sensitivity_figure,
)
from web.queries.figure_rows import anchor_results, chosen_configs, error_cells, fitted, outcomes

_Build = Callable[[Session, Model, list[Job]], Figure]


def _fit(session: Session, model: Model, jobs: list[Job]) -> Figure:
    cells, fit = fitted(session, jobs)
    if fit is None:
        return fit_figure(cells)
    return fit_figure(cells, form=fit.form, r2=fit.r2, cv_error=fit.cv_error)


#: in the order of the page
FIGURES: dict[str, _Build] = {
    "outcome": lambda session, model, jobs: outcome_figure(outcomes(session, model, jobs)),
    "errors": lambda session, model, jobs: errors_figure(error_cells(session, model, jobs)),
    "allocation": lambda session, model, jobs: allocation_figure(chosen_configs(session, model, jobs)),
    "sensitivity": lambda session, model, jobs: sensitivity_figure(anchor_results(session, model, jobs)),
    "fit": _fit,
}


def study_figures(session: Session, study: Study) -> list[Figure]:
    """All figures of a study."""
    model, jobs = session.get_one(Model, study.model_id), _jobs(session, study.id)
    return [build(session, model, jobs) for build in FIGURES.values()]


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
