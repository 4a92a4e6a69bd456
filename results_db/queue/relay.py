"""The database's half of the relay: which attempts RQ should be told of."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from results_db.clock import db_now
from results_db.states import AttemptState
from results_db.tables import Attempt, Job


def attempts_to_enqueue(session: Session) -> Sequence[str]:
    """Ids of queued attempts that were never handed to RQ, urgent ones first."""
    return session.scalars(
        select(Attempt.id)
        .join(Job, Job.id == Attempt.job_id)
        .where(Attempt.state == AttemptState.QUEUED.value, Attempt.enqueued_at.is_(None))
        # ids of one millisecond are in no order: the layers of a sweep go in theirs
        .order_by(Job.priority.desc(), Job.position, Attempt.created_at, Attempt.id)
    ).all()


def attempts_believed_enqueued(session: Session) -> Sequence[str]:
    """Ids of queued attempts that were handed over; the relay compares them with what Redis holds."""
    return session.scalars(
        select(Attempt.id).where(Attempt.state == AttemptState.QUEUED.value, Attempt.enqueued_at.is_not(None))
    ).all()


def mark_enqueued(session: Session, attempt_ids: Sequence[str]) -> None:
    """RQ has them."""
    _set(session, attempt_ids, db_now())


def mark_forgotten(session: Session, attempt_ids: Sequence[str]) -> None:
    """Redis lost them: hand them over again."""
    _set(session, attempt_ids, None)


def _set(session: Session, attempt_ids: Sequence[str], value: object) -> None:
    if attempt_ids:
        session.execute(
            update(Attempt)
            .where(Attempt.id.in_(attempt_ids), Attempt.state == AttemptState.QUEUED.value)
            .values(enqueued_at=value)
            .execution_options(synchronize_session=False)
        )
