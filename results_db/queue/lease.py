"""What a worker does with an attempt: claim, heartbeat, record under the token, finish, fail, release.

Every write is guarded by the lease token: zero rows means that another attempt owns the job, and the stale
worker throws its result away (LeaseLost).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from results_db.clock import db_now, utc_now
from results_db.errors import LeaseLost
from results_db.queue.events import record_event
from results_db.queue.transitions import change_state, get_job, queue_job
from results_db.states import AttemptState, JobState
from results_db.tables import Attempt, Job


@dataclass(frozen=True, slots=True)
class Claim:
    """A claimed attempt: what the worker needs to run it and to prove that it may write."""

    attempt_id: str
    attempt_number: int
    job_id: str
    study_id: str | None
    kind: str
    params: dict[str, Any]
    token: str
    #: of the request that submitted the job
    trace_id: str | None = None


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat learned."""

    cancel_requested: bool
    pause_requested: bool


def claim_attempt(session: Session, attempt_id: str, *, worker_id: str, lease_s: float) -> Claim | None:
    """Take a queued attempt; None when someone else has it (the caller then exits quietly)."""
    attempt = session.get(Attempt, attempt_id, populate_existing=True)
    if attempt is None:
        return None
    # the job's row before the attempt's, as everybody who touches a queued attempt: no deadlock with a cancel
    job = get_job(session, attempt.job_id, lock=True)
    token = secrets.token_hex(16)
    taken = session.execute(
        update(Attempt)
        .where(Attempt.id == attempt_id, Attempt.state == AttemptState.QUEUED.value)
        .values(
            state=AttemptState.RUNNING.value,
            lease_token=token,
            lease_expires_at=db_now(lease_s),
            heartbeat_at=db_now(),
            started_at=db_now(),
            worker_id=worker_id,
        )
        .execution_options(synchronize_session=False)
    )
    if taken.rowcount == 0:  # type: ignore[attr-defined]
        return None
    session.refresh(attempt)
    moved = job.state == JobState.QUEUED and change_state(
        session,
        job,
        JobState.RUNNING,
        attempt_id=attempt_id,
        payload={"worker_id": worker_id, "attempt": attempt.number},
        # a sweep that waited for its parts began with the first of them
        started_at=(job.started_at if attempt.number == 1 else None) or utc_now(),
        progress=None,
    )
    if not moved:
        attempt.state = AttemptState.RELEASED.value
        attempt.finished_at = utc_now()
        return None
    return Claim(attempt_id, attempt.number, job.id, job.study_id, job.kind, dict(job.params), token, job.trace_id)


def hold_lease(session: Session, claim: Claim) -> None:
    """First statement of every recording transaction: locks the attempt's row and proves that the token holds.

    Raises:
        LeaseLost: the attempt was reaped, cancelled or taken over.
    """
    held = session.execute(
        update(Attempt)
        .where(
            Attempt.id == claim.attempt_id,
            Attempt.lease_token == claim.token,
            Attempt.state == AttemptState.RUNNING.value,
        )
        .values(heartbeat_at=db_now())
        .execution_options(synchronize_session=False)
    )
    if held.rowcount == 0:  # type: ignore[attr-defined]
        raise LeaseLost(f"attempt {claim.attempt_id} of job {claim.job_id} lost its lease: its result is not recorded")


def heartbeat(session: Session, claim: Claim, *, lease_s: float, progress: dict[str, Any] | None) -> Beat:
    """Renew the lease, store progress, learn whether a person wants the job to stop.

    Raises:
        LeaseLost: this worker has been fenced; it must stop at once.
    """
    hold_lease(session, claim)
    session.execute(
        update(Attempt)
        .where(Attempt.id == claim.attempt_id)
        .values(lease_expires_at=db_now(lease_s))
        .execution_options(synchronize_session=False)
    )
    job = get_job(session, claim.job_id)
    if progress is not None and progress != job.progress:
        job.progress = progress
        record_event(session, job, "progress", attempt_id=claim.attempt_id, payload=progress)
    return Beat(job.cancel_requested, job.pause_requested)


def finish_attempt(
    session: Session,
    claim: Claim,
    result: dict[str, Any],
    *,
    peak_rss_bytes: int | None = None,
    peak_gpu_bytes: int | None = None,
) -> None:
    """The job succeeded.

    Raises:
        LeaseLost: somebody else owns the job by now.
    """
    hold_lease(session, claim)
    _close(
        session, claim.attempt_id, AttemptState.SUCCEEDED, peak_rss_bytes=peak_rss_bytes, peak_gpu_bytes=peak_gpu_bytes
    )
    job = get_job(session, claim.job_id, lock=True)
    progress = (job.progress or {}) | {"eta_s": 0.0}
    if progress.get("total"):
        progress["done"] = progress["total"]
    change_state(
        session,
        job,
        JobState.SUCCEEDED,
        attempt_id=claim.attempt_id,
        payload=result,
        result=result,
        progress=progress,
        error=None,
    )


def fail_attempt(
    session: Session,
    claim: Claim,
    error: dict[str, Any],
    *,
    peak_rss_bytes: int | None = None,
    peak_gpu_bytes: int | None = None,
) -> None:
    """The job's own error. ``error["retryable"]`` and attempts left: a new attempt; else the job has failed.

    Where a person had asked to cancel or pause, that wish comes before the new attempt.

    Raises:
        LeaseLost: somebody else owns the job by now.
    """
    hold_lease(session, claim)
    _close(
        session,
        claim.attempt_id,
        AttemptState.FAILED,
        error=error,
        peak_rss_bytes=peak_rss_bytes,
        peak_gpu_bytes=peak_gpu_bytes,
    )
    job = get_job(session, claim.job_id, lock=True)
    if error.get("retryable") and _grant_wish(session, job, claim.attempt_id):
        return
    if error.get("retryable") and counted_attempts(session, job.id) < job.max_attempts:
        queue_job(session, job)
        return
    change_state(session, job, JobState.FAILED, attempt_id=claim.attempt_id, payload=error, error=error)


def release_attempt(session: Session, claim: Claim, *, to: JobState) -> None:
    """Give the attempt back in order: to QUEUED on shutdown, PAUSED on pause, CANCELLED on cancel.

    What a person asked for meanwhile comes first: a shutdown never forgets a cancel.

    Raises:
        LeaseLost: somebody else owns the job by now.
    """
    hold_lease(session, claim)
    job = get_job(session, claim.job_id, lock=True)
    cancelled = to == JobState.CANCELLED or job.cancel_requested
    _close(session, claim.attempt_id, AttemptState.CANCELLED if cancelled else AttemptState.RELEASED)
    if _grant_wish(session, job, claim.attempt_id):
        return
    if to == JobState.QUEUED:
        queue_job(session, job)
    else:
        change_state(session, job, to, attempt_id=claim.attempt_id)


def lose_attempt(session: Session, attempt: Attempt, why: str, **values: Any) -> bool:
    """An attempt whose process is gone: event ``worker_lost``, then a new attempt, or ``dead``. False if it had ended.

    A running job that a person had asked to cancel or pause gets that wish instead of a new attempt.
    """
    lost = session.execute(
        update(Attempt)
        .where(
            Attempt.id == attempt.id,
            Attempt.state == AttemptState.RUNNING.value,
            Attempt.lease_token == attempt.lease_token,
        )
        .values(state=AttemptState.LOST.value, finished_at=db_now(), **values)
        .execution_options(synchronize_session=False)
    )
    if lost.rowcount == 0:  # type: ignore[attr-defined]
        return False
    job = get_job(session, attempt.job_id, lock=True)
    record_event(
        session, job, "worker_lost", attempt_id=attempt.id, payload={"message": why, "worker_id": attempt.worker_id}
    )
    if _grant_wish(session, job, attempt.id):
        return True
    if counted_attempts(session, job.id) < job.max_attempts:
        queue_job(session, job)
    else:
        error = {
            "code": "worker-lost",
            "message": f"{counted_attempts(session, job.id)} attempts were lost or failed; the last: {why}",
            "retryable": False,
        } | {k: v for k, v in values.items() if v is not None}
        change_state(session, job, JobState.DEAD, attempt_id=attempt.id, payload=error, error=error)
    return True


def reap_expired(session: Session) -> list[str]:
    """Lose every running attempt whose lease ran out by the database's clock; the ids of those lost.

    An attempt whose row is locked is left for the next turn: its worker is writing, or was frozen while it wrote, and
    waiting for it would hold up everybody else's jobs.
    """
    expired = session.scalars(
        select(Attempt)
        .where(Attempt.state == AttemptState.RUNNING.value, Attempt.lease_expires_at < db_now())
        .with_for_update(skip_locked=True)
    ).all()
    return [a.id for a in expired if lose_attempt(session, a, "its lease ran out: no heartbeat from its worker")]


def counted_attempts(session: Session, job_id: str) -> int:
    """Attempts that count toward ``max_attempts``: failed or lost ones; released ones do not."""
    states = session.scalars(select(Attempt.state).where(Attempt.job_id == job_id)).all()
    return sum(state in (AttemptState.FAILED, AttemptState.LOST) for state in states)


def _grant_wish(session: Session, job: Job, attempt_id: str) -> bool:
    """Cancel or pause a running job whose attempt has ended, if a person had asked for it.

    A job whose attempts are used up is not paused: a resume would give it one more than it has.
    """
    if job.cancel_requested:
        to = JobState.CANCELLED
    elif job.pause_requested and counted_attempts(session, job.id) < job.max_attempts:
        to = JobState.PAUSED
    else:
        return False
    return change_state(session, job, to, attempt_id=attempt_id, cancel_requested=False, pause_requested=False)


def _close(session: Session, attempt_id: str, state: AttemptState, **values: Any) -> None:
    session.execute(
        update(Attempt)
        .where(Attempt.id == attempt_id)
        .values(state=state.value, finished_at=db_now(), **values)
        .execution_options(synchronize_session=False)
    )
