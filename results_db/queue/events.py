"""job_events: one row for every change, told in the order of their ids.

Ids are handed out before they are committed: on PostgreSQL, where several transactions write, a lower one can appear
after a higher one, and who reads by id would never see it. So a transaction announces, by a shared advisory lock
before its first event, beyond which id its events will be. The lock ends with the transaction, and what lies up to the
lowest announced id is settled: nothing can appear there any more. SQLite's writers are alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from results_db.tables import Job, JobEvent

#: first half of the advisory locks' key; the second is an id
_EVENTS = 0x6A6F6265
_HANDED_OUT = "SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM job_events_id_seq"
_ANNOUNCE = text(f"SELECT pg_advisory_xact_lock_shared(:key, (({_HANDED_OUT}))::integer)").bindparams(key=_EVENTS)
_ANNOUNCED = text(
    """SELECT min(objid::bigint) FROM pg_locks WHERE locktype = 'advisory' AND classid = :key AND objsubid = 2
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
).bindparams(key=_EVENTS)
_HOLDER = "announced_events_in"


def record_event(
    session: Session, job: Job, kind: str, *, attempt_id: str | None = None, payload: dict[str, Any] | None = None
) -> None:
    """Add an event that carries the job's present state; it commits with the change that it tells of."""
    _announce(session)
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


def settled_event(session: Session) -> int:
    """Up to which id the events are all there, for a session of their own that begins later; 0 before the first one.

    It may lag behind what is committed while another transaction goes on, and it may fall.
    """
    if not _is_postgresql(session):
        return newest_event(session)
    # in this order: whoever has an id up to this one has announced it before, and is seen below or has ended
    handed_out: int = session.execute(text(_HANDED_OUT)).scalar_one()
    announced: int | None = session.execute(_ANNOUNCED).scalar_one()
    return handed_out if announced is None else min(handed_out, announced)


def newest_event(session: Session) -> int:
    """The largest id that is committed; 0 before the first one."""
    return session.scalar(select(func.max(JobEvent.id))) or 0


def events_after(
    session: Session,
    after: int,
    *,
    up_to: int | None = None,
    job_id: str | None = None,
    study_id: str | None = None,
    limit: int = 500,
) -> Sequence[JobEvent]:
    """Events with an id beyond ``after``, and not beyond ``up_to``, oldest first."""
    query = select(JobEvent).where(JobEvent.id > after).order_by(JobEvent.id).limit(limit)
    if up_to is not None:
        query = query.where(JobEvent.id <= up_to)
    if job_id is not None:
        query = query.where(JobEvent.job_id == job_id)
    if study_id is not None:
        query = query.where(JobEvent.study_id == study_id)
    return session.scalars(query).all()


def _announce(session: Session) -> None:
    """Once a transaction; a savepoint that is undone takes its lock along, so what follows announces anew."""
    if not _is_postgresql(session):
        return
    transaction = session.get_nested_transaction() or session.get_transaction()
    while transaction is not None:
        if transaction is session.info.get(_HOLDER):
            return
        transaction = transaction.parent
    with session.no_autoflush:
        session.execute(_ANNOUNCE)
    session.info[_HOLDER] = session.get_nested_transaction() or session.get_transaction()


def _is_postgresql(session: Session) -> bool:
    return session.get_bind().dialect.name == "postgresql"
