"""What is in the queue, counted in one reading transaction."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from results_db.clock import db_now
from results_db.queue.control import queue_state
from results_db.queue.relay import is_due
from results_db.states import TERMINAL, AttemptState
from results_db.tables import Attempt, Job, Worker
from server.loop import AdvanceLoop


def ask_redis(request: Request) -> str | None:
    """Why Redis does not answer; None where it does. Asked before the transaction: it may take seconds."""
    loop: AdvanceLoop = request.app.state.loop
    return loop.relay.ping()


RedisError = Annotated[str | None, Depends(ask_redis)]


def describe_queue(session: Session, loop: AdvanceLoop, error: str | None) -> dict[str, Any]:
    """A :class:`QueueStatus` as plain values; ``error`` is what :func:`ask_redis` found."""
    switch = queue_state(session)
    redis = "Redis answers" if error is None else f"Redis does not answer ({error}): jobs wait in the database"
    queued = Attempt.state == AttemptState.QUEUED.value
    return {
        "paused_at": switch.paused_at,
        "reason": switch.reason,
        "jobs": _jobs(session),
        "due": session.scalar(select(func.count()).where(is_due())),
        "next_due_at": session.scalar(
            select(func.min(Attempt.available_at)).where(queued, Attempt.available_at > db_now())
        ),
        "workers": _workers(session),
        "redis": {"ok": error is None, "detail": redis, "last_contact_at": loop.relay.last_contact_at},
        "leads": loop.leads,
    }


def _jobs(session: Session) -> dict[str, dict[str, int]]:
    ended = [state.value for state in TERMINAL]
    rows = session.execute(
        select(Job.state, Job.kind, func.count()).where(Job.state.not_in(ended)).group_by(Job.state, Job.kind)
    )
    counts: dict[str, dict[str, int]] = {}
    for state, kind, n in sorted(rows.tuples()):
        counts.setdefault(state, {})[kind] = n
    return counts


def _workers(session: Session) -> dict[str, int]:
    up = select(Worker.id).where(Worker.state == "up")
    running = select(Attempt.worker_id).where(Attempt.state == AttemptState.RUNNING.value)

    def count(query: Any) -> int:
        return session.scalar(select(func.count()).select_from(query.subquery())) or 0

    return {
        "up": count(up),
        "busy": count(up.where(Worker.id.in_(running))),
        "draining": count(up.where(Worker.drain_requested)),
    }
