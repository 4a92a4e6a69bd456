"""A study whose results are stale is computed again as a new study: what was measured and stands is reused."""

from __future__ import annotations

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from results_db.tables import Allocation, Fit, Gate, Job, Study
from server.kit.problem import Problem
from server.kit.rows import get_row
from server.studies.schemas import StudyConfig


def config_to_recompute(session: Session, study_id: str) -> StudyConfig:
    """The config of a study that has ended and has something stale.

    Raises:
        NotFound: no such study.
        Problem: wrong-state: it runs; nothing-stale.
    """
    study = get_row(session, Study, study_id)
    if study.finished_at is None:
        raise Problem(409, "wrong-state", f"study {study.id} is {study.state}: let it end, or cancel it first")
    if not has_stale(session, study_id):
        raise Problem(
            409,
            "nothing-stale",
            f"nothing of study {study.id} is stale: there is nothing to compute again. POST /api/v1/studies starts its "
            "config anew",
        )
    return StudyConfig.model_validate(study.config)


def has_stale(session: Session, study_id: str) -> bool:
    """Whether a gate, an allocation or a fit of the study is stale."""
    fitted = select(Job.id).where(Job.study_id == study_id)
    stale = (
        exists().where(Gate.study_id == study_id, Gate.stale_at.is_not(None)),
        exists().where(Allocation.study_id == study_id, Allocation.stale_at.is_not(None)),
        exists().where(Fit.job_id.in_(fitted), Fit.stale_at.is_not(None)),
    )
    return any(bool(session.scalar(select(condition))) for condition in stale)
