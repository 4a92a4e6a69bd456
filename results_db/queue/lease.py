"""What a worker does with an attempt: claim, heartbeat, record under the token, finish, fail, release.

Every write is guarded by the lease token: zero rows means that another attempt owns the job, and the stale
worker throws its result away (LeaseLost).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from results_db.clock import db_now, utc_now
from results_db.errors import LeaseLost
from results_db.queue.backoff import Backoff
from results_db.queue.events import record_event
from results_db.queue.relay import is_due
from results_db.queue.transitions import change_state, get_job, queue_job
from results_db.queue.workers import takes_work
from results_db.states import AttemptState, JobState
from results_db.tables import Attempt, Job

#: what is known of a process that is gone
_REMAINS = ("exit_code", "signal", "peak_rss_bytes", "peak_gpu_bytes")
#: the waits of an installation that sets nothing
_BACKOFF = Backoff()


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
    """Take a queued attempt; None when someone else has it (the caller then exits quietly).

    None also where its wait is not over, the queue is paused, or this worker is drained: nothing was changed then, and
    no attempt counted.
    """
    attempt = session.get(Attempt, attempt_id, populate_existing=True)
    if attempt is None:
        return None
    # the job's row before the attempt's, as everybody who touches a queued attempt: no deadlock with a cancel
    job = get_job(session, attempt.job_id, lock=True)
    token = secrets.token_hex(16)
    taken = session.execute(
        update(Attempt)
        .where(Attempt.id == attempt_id, is_due(), takes_work(worker_id))
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


def heartbeat(
    session: Session,
    claim: Claim,
    *,
    lease_s: float,
    progress: dict[str, Any] | None,
    peaks: Mapping[str, object] | None = None,
) -> Beat:
    """Renew the lease, store progress, learn whether a person wants the job to stop.

    ``peaks`` ({"peak_rss_bytes", "peak_gpu_bytes"}) stay in the attempt: a process that is killed tells nothing more.

    Raises:
        LeaseLost: this worker has been fenced; it must stop at once.
    """
    hold_lease(session, claim)
    session.execute(
        update(Attempt)
        .where(Attempt.id == claim.attempt_id)
        .values(lease_expires_at=db_now(lease_s), **_known(peaks or {}))
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
    backoff: Backoff = _BACKOFF,
) -> None:
    """The job's own error. ``error["retryable"]`` and attempts left: a new one after a wait; else the job has failed.

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
    failures = counted_attempts(session, job.id)
    if error.get("retryable") and failures < job.max_attempts:
        queue_job(session, job, wait_s=backoff.draw_s(failures))
        return
    change_state(session, job, JobState.FAILED, attempt_id=claim.attempt_id, payload=error, error=error)


def release_attempt(session: Session, claim: Claim, *, to: JobState) -> None:
    """Give the attempt back in order: to QUEUED on shutdown, PAUSED on pause, CANCELLED on cancel.

    What a person asked for meanwhile comes first: a shutdown never forgets a cancel, and a pause that was withdrawn
    before the job came to a stop is none.

    Raises:
        LeaseLost: somebody else owns the job by now.
    """
    hold_lease(session, claim)
    job = get_job(session, claim.job_id, lock=True)
    cancelled = to == JobState.CANCELLED or job.cancel_requested
    _close(session, claim.attempt_id, AttemptState.CANCELLED if cancelled else AttemptState.RELEASED)
    if _grant_wish(session, job, claim.attempt_id):
        return
    if to in (JobState.QUEUED, JobState.PAUSED):  # a pause that still holds was granted above
        queue_job(session, job)
    else:
        change_state(session, job, to, attempt_id=claim.attempt_id)


def give_back(session: Session, attempt: Attempt) -> bool:
    """Release a running attempt whose process was ended on purpose, in its name: it costs none.

    Returns:
        False if it had ended.
    """
    job = get_job(session, attempt.job_id)
    token = attempt.lease_token or ""
    claim = Claim(attempt.id, attempt.number, job.id, job.study_id, job.kind, dict(job.params), token, job.trace_id)
    try:
        release_attempt(session, claim, to=JobState.QUEUED)
    except LeaseLost:
        return False
    return True


def lose_attempt(
    session: Session,
    attempt: Attempt,
    why: str,
    *,
    traceback: str | None = None,
    backoff: Backoff = _BACKOFF,
    remains: Mapping[str, int | None] | None = None,
) -> bool:
    """An attempt whose process is gone: event ``worker_lost``, then a new attempt, or ``dead``. False if it had ended.

    The first loss is made good at once, since it is mostly the machine's; after the next the job waits. A running job
    that a person had asked to cancel or pause gets that wish instead of a new attempt.

    Args:
        traceback: where Python was, if the process left word of it.
        remains: exit_code, signal, peak_rss_bytes, peak_gpu_bytes; what is None leaves the attempt as it is.
    """
    cause = {"code": "worker-lost", "message": why, "retryable": True} | _known({"traceback": traceback})
    lost = session.execute(
        update(Attempt)
        .where(
            Attempt.id == attempt.id,
            Attempt.state == AttemptState.RUNNING.value,
            Attempt.lease_token == attempt.lease_token,
        )
        .values(state=AttemptState.LOST.value, finished_at=db_now(), error=cause, **_known(remains or {}))
        .execution_options(synchronize_session=False)
    )
    if lost.rowcount == 0:  # type: ignore[attr-defined]
        return False
    attempt = session.get_one(Attempt, attempt.id, populate_existing=True)
    job = get_job(session, attempt.job_id, lock=True)
    record_event(
        session, job, "worker_lost", attempt_id=attempt.id, payload={"message": why, "worker_id": attempt.worker_id}
    )
    if _grant_wish(session, job, attempt.id):
        return True
    failures = counted_attempts(session, job.id)
    if failures < job.max_attempts:
        queue_job(session, job, wait_s=backoff.draw_s(failures - 1))
        return True
    error = cause | {"message": f"{failures} attempts were lost or failed; the last: {why}", "retryable": False}
    if traceback is None:
        error |= _known({"traceback": _last_traceback(session, job.id)})
    error |= _known({name: getattr(attempt, name) for name in _REMAINS})
    change_state(session, job, JobState.DEAD, attempt_id=attempt.id, payload=error, error=error)
    return True


def reap_expired(session: Session, *, backoff: Backoff = _BACKOFF, most: int | None = None) -> list[str]:
    """Lose the running attempts whose lease ran out by the database's clock, ``most`` of them; the ids of those lost.

    An attempt whose row is locked is left for the next turn: its worker is writing, or was frozen while it wrote, and
    waiting for it would hold up everybody else's jobs.
    """
    expired = session.scalars(
        select(Attempt)
        .where(Attempt.state == AttemptState.RUNNING.value, Attempt.lease_expires_at < db_now())
        .order_by(Attempt.lease_expires_at)
        .limit(most)
        .with_for_update(skip_locked=True, key_share=True)
    ).all()
    why = "its lease ran out: no heartbeat from its worker"
    return [attempt.id for attempt in expired if lose_attempt(session, attempt, why, backoff=backoff)]


def counted_attempts(session: Session, job_id: str) -> int:
    """Attempts that count toward ``max_attempts``: failed or lost ones; released ones do not."""
    counted = (AttemptState.FAILED.value, AttemptState.LOST.value)
    query = select(func.count()).where(Attempt.job_id == job_id, Attempt.state.in_(counted))
    return session.scalar(query) or 0


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


def _last_traceback(session: Session, job_id: str) -> str | None:
    """What the newest attempt that left a traceback says."""
    errors = session.scalars(select(Attempt.error).where(Attempt.job_id == job_id).order_by(Attempt.number.desc()))
    return next((error["traceback"] for error in errors if error and error.get("traceback")), None)


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is not known."""
    return {name: value for name, value in values.items() if value is not None}


def _close(session: Session, attempt_id: str, state: AttemptState, **values: Any) -> None:
    session.execute(
        update(Attempt)
        .where(Attempt.id == attempt_id)
        .values(state=state.value, finished_at=db_now(), **_known(values))
        .execution_options(synchronize_session=False)
    )
