"""job_events: one row for every change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from results_db.tables import Job, JobEvent


def record_event(
    session: Session, job: Job, kind: str, *, attempt_id: str | None = None, payload: dict[str, Any] | None = None
) -> None:
    """Add an event that carries the job's present state; it commits with the change that it tells of."""
    session.add(
        JobEvent(
            job_id=job.id,
            study_id=job.study_id,
            attempt_id=attempt_id,
            kind=kind,
            state=job.state,
            payload=payload or {},
        )
    )


def events_after(
    session: Session, after: int, *, job_id: str | None = None, study_id: str | None = None, limit: int = 500
) -> Sequence[JobEvent]:
    """Events with an id beyond ``after``, oldest first."""
    query = select(JobEvent).where(JobEvent.id > after).order_by(JobEvent.id).limit(limit)
    if job_id is not None:
        query = query.where(JobEvent.job_id == job_id)
    if study_id is not None:
        query = query.where(JobEvent.study_id == study_id)
    return session.scalars(query).all()
