"""Workers: the order to take nothing more, and those that fell silent."""

from __future__ import annotations

from sqlalchemy import ColumnElement, exists, select, update
from sqlalchemy.orm import Session

from results_db.clock import db_now
from results_db.errors import NotFound, WrongState
from results_db.tables import Worker

#: a worker shows itself every few seconds, also while its job runs
SILENT_S = 60.0


def takes_work(worker_id: str) -> ColumnElement[bool]:
    """Condition: nobody has asked this worker to stop taking attempts."""
    return ~exists().where(Worker.id == worker_id, Worker.drain_requested)


def drain_worker(session: Session, worker_id: str) -> Worker:
    """Ask a worker to finish what it does, take nothing more, and end; asked twice is asked once.

    Raises:
        NotFound: no such worker.
        WrongState: it is down.
    """
    worker = session.scalar(select(Worker).where(Worker.id == worker_id).with_for_update())
    if worker is None:
        raise NotFound("worker", worker_id)
    if worker.state != "up":
        raise WrongState(f"worker {worker.name} is {worker.state}: only one that is up can be drained")
    worker.drain_requested = True
    session.flush()
    return worker


def has_silent_workers(session: Session) -> bool:
    """Whether a worker counts as up that has not shown itself for a minute."""
    return bool(session.scalar(select(exists().where(is_silent()))))


def mark_silent_workers(session: Session) -> list[str]:
    """Count those as down; their names. One that comes back, from a suspended machine for example, is up again with
    its next heartbeat."""
    marked = update(Worker).where(is_silent()).values(state="down").returning(Worker.name)
    return list(session.scalars(marked, execution_options={"synchronize_session": False}))


def is_silent() -> ColumnElement[bool]:
    """Condition: it counts as up and has not shown itself for a minute."""
    return (Worker.state == "up") & (Worker.heartbeat_at < db_now(-SILENT_S))
