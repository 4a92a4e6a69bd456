"""A job with its attempts, and the final state of what an event stream follows."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from results_db import Database
from results_db.queries.parts import parts_of
from results_db.states import TERMINAL, JobState
from results_db.tables import Attempt, Job
from server.kit.rows import get_row


def describe_job(session: Session, job_id: str) -> dict[str, Any]:
    """The job with its attempts in order (without their lease tokens), and the ids of the layers it is split into."""
    job = get_row(session, Job, job_id)
    attempts = session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)).all()
    return job.as_dict() | {
        "attempts": [{k: v for k, v in attempt.as_dict().items() if k != "lease_token"} for attempt in attempts],
        "parts": [part.id for part in parts_of(session, job)],
    }


def ended_job(database: Database, job_id: str) -> dict[str, Any] | None:
    """The job once it has ended, else None."""
    with database.read() as session:
        job = get_row(session, Job, job_id)
        return job.as_dict() if JobState(job.state) in TERMINAL else None
