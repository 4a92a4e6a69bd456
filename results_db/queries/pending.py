"""What the advance loop would have to do, asked without a write lock, so that an idle loop never takes one."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, exists, select
from sqlalchemy.orm import Session

from results_db.clock import db_now
from results_db.queue.control import queue_runs
from results_db.states import TERMINAL, WORKER_KINDS, AttemptState, JobState
from results_db.tables import Attempt, Job

_WORKER_KINDS = [str(kind) for kind in WORKER_KINDS]
_ENDED = [state.value for state in TERMINAL]


def has_promotable(session: Session) -> bool:
    """A waiting job whose dependencies have all ended."""
    waiting = session.scalars(select(Job.depends_on).where(Job.state == JobState.WAITING.value)).all()
    wanted = {dep for depends_on in waiting for dep in depends_on}
    if not wanted:
        return bool(waiting)
    ended = set(session.scalars(select(Job.id).where(Job.id.in_(wanted), Job.state.in_(_ENDED))))
    return any(ended.issuperset(depends_on) for depends_on in waiting)


def has_server_job(session: Session, state: JobState) -> bool:
    """A job in this state that the server itself runs. Running ones are orphans: between two turns nobody runs one.
    Queued ones count only while the queue runs."""
    there = exists().where(Job.state == state.value, Job.kind.not_in(_WORKER_KINDS))
    return _any(session, and_(there, queue_runs()) if state == JobState.QUEUED else there)


def has_expired(session: Session) -> bool:
    """A running attempt whose lease ran out."""
    return _any(
        session, exists().where(Attempt.state == AttemptState.RUNNING.value, Attempt.lease_expires_at < db_now())
    )


def _any(session: Session, condition: ColumnElement[bool]) -> bool:
    return bool(session.scalar(select(condition)))
