"""Which ids the log lines about an attempt carry, for those who do not run it themselves."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from results_db.tables import Attempt, Job


def log_ids(session: Session, attempt_id: str) -> dict[str, str | None]:
    """For :func:`results_db.logs.bind`; of an attempt that is not there, its id alone."""
    of_job = select(Job.trace_id, Job.study_id, Job.id).join(Attempt, Attempt.job_id == Job.id)
    row = session.execute(of_job.where(Attempt.id == attempt_id)).first()
    ids: dict[str, str | None] = {"attempt_id": attempt_id}
    return ids if row is None else {"trace_id": row[0], "study_id": row[1], "job_id": row[2]} | ids
