"""The database's half of the relay: which attempts workers may take now, in which order, and what RQ holds of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.orm import Session

from results_db.clock import db_now
from results_db.queue.control import queue_runs
from results_db.states import AttemptState
from results_db.tables import Attempt, Job


def is_due() -> ColumnElement[bool]:
    """Condition: a queued attempt whose wait is over, of a queue that runs."""
    return (
        (Attempt.state == AttemptState.QUEUED.value)
        & or_(Attempt.available_at.is_(None), Attempt.available_at <= db_now())
        & queue_runs()
    )


def due_attempts(session: Session, limit: int | None = None) -> Sequence[str]:
    """Ids of the attempts that workers may take now, the most urgent first, ``limit`` of them at most.

    The order is that of their jobs: by priority, then by the step's position in its study, then by age.
    """
    return session.scalars(
        select(Attempt.id)
        .join(Job, Job.id == Attempt.job_id)
        .where(is_due())
        # ids of one millisecond are in no order: the layers of a sweep go in theirs
        .order_by(Job.priority.desc(), Job.position, Attempt.created_at, Attempt.id)
        .limit(limit)
    ).all()


def handed_over(session: Session) -> Sequence[str]:
    """Ids of the queued attempts that RQ was told of."""
    return session.scalars(
        select(Attempt.id).where(Attempt.state == AttemptState.QUEUED.value, Attempt.enqueued_at.is_not(None))
    ).all()


def mark_enqueued(session: Session, attempt_ids: Iterable[str]) -> None:
    """RQ has them."""
    _set(session, attempt_ids, db_now())


def mark_taken_back(session: Session, attempt_ids: Iterable[str]) -> None:
    """RQ has them no longer: Redis lost them, the queue was paused, or others are more urgent."""
    _set(session, attempt_ids, None)


def _set(session: Session, attempt_ids: Iterable[str], value: object) -> None:
    if ids := list(attempt_ids):
        session.execute(
            update(Attempt)
            .where(Attempt.id.in_(ids), Attempt.state == AttemptState.QUEUED.value)
            .values(enqueued_at=value)
            .execution_options(synchronize_session=False)
        )
