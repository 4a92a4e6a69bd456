"""The queue's own switch."""

from __future__ import annotations

from sqlalchemy import ColumnElement, exists, update
from sqlalchemy.orm import Session

from results_db.clock import db_now
from results_db.tables import QueueControl

_ROW = 1


def queue_runs() -> ColumnElement[bool]:
    """Condition: nobody has paused the queue."""
    return ~exists().where(QueueControl.id == _ROW, QueueControl.paused_at.is_not(None))


def queue_state(session: Session) -> QueueControl:
    """The switch as it stands; ``paused_at`` null = the queue runs."""
    row = session.get(QueueControl, _ROW, populate_existing=True)
    return row if row is not None else QueueControl(id=_ROW, paused_at=None, reason=None)


def pause_queue(session: Session, reason: str | None = None) -> QueueControl:
    """Hand out and claim nothing from now on; what runs goes on. The first pause's time stays, the last reason counts.

    Two first pauses at the same moment: one meets an IntegrityError.
    """
    row = session.get(QueueControl, _ROW, with_for_update=True, populate_existing=True)
    if row is None:
        row = QueueControl(id=_ROW, paused_at=None, reason=None)
        session.add(row)
    if row.paused_at is None:
        row.paused_at = db_now()
    row.reason = reason
    session.flush()
    session.refresh(row)
    return row


def resume_queue(session: Session) -> QueueControl:
    """Let the queue run; nothing where it does."""
    session.execute(
        update(QueueControl).where(QueueControl.id == _ROW).values(paused_at=None, reason=None),
        execution_options={"synchronize_session": False},
    )
    return queue_state(session)
