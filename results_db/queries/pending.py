"""What the advance loop would have to do, asked without a write lock."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from results_db.clock import db_now
from results_db.states import TERMINAL, WORKER_KINDS, AttemptState, JobState
from results_db.tables import Attempt, Job


@dataclass(frozen=True, slots=True)
class Pending:
    """Which parts of a turn have something to do."""

    #: a waiting job whose dependencies have all ended
    promotable: bool
    #: a queued job that the server itself runs
    server_job: bool
    #: a server job that is marked running: between two turns nobody runs one
    orphan: bool
    #: a running attempt whose lease ran out
    expired: bool


def pending_work(session: Session) -> Pending:
    """Read only, so that an idle loop never takes SQLite's write lock."""
    kinds = [str(kind) for kind in WORKER_KINDS]
    server_job = exists().where(Job.state == JobState.QUEUED.value, Job.kind.not_in(kinds))
    orphan = exists().where(Job.state == JobState.RUNNING.value, Job.kind.not_in(kinds))
    expired = exists().where(Attempt.state == AttemptState.RUNNING.value, Attempt.lease_expires_at < db_now())
    return Pending(
        promotable=_promotable(session),
        server_job=bool(session.scalar(select(server_job))),
        orphan=bool(session.scalar(select(orphan))),
        expired=bool(session.scalar(select(expired))),
    )


def _promotable(session: Session) -> bool:
    waiting = session.scalars(select(Job.depends_on).where(Job.state == JobState.WAITING.value)).all()
    wanted = {dep for depends_on in waiting for dep in depends_on}
    if not wanted:
        return bool(waiting)
    ended_states = [state.value for state in TERMINAL]
    ended = set(session.scalars(select(Job.id).where(Job.id.in_(wanted), Job.state.in_(ended_states))))
    return any(ended.issuperset(depends_on) for depends_on in waiting)
