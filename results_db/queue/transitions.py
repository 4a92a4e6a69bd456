"""The one place where a job's state changes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from results_db.clock import db_now, utc_now
from results_db.errors import NotFound, WrongState
from results_db.ids import new_id
from results_db.queue.events import record_event
from results_db.states import ALLOWED, TERMINAL, WORKER_KINDS, AttemptState, JobState
from results_db.tables import Attempt, Job, Study


def get_job(session: Session, job_id: str, *, lock: bool = False) -> Job:
    """The job; ``lock`` takes the row's lock on PostgreSQL (SQLite's writers are alone anyway).

    Whoever locks several rows goes from the study to its jobs, from a split job to its parts, from a queued job to its
    attempt (and from a running attempt to its job): two that lock in different orders would wait for each other.

    Raises:
        NotFound: no such job.
    """
    query = select(Job).where(Job.id == job_id).execution_options(populate_existing=True)
    # NO KEY UPDATE: rows that only name the job, events above all, may be inserted meanwhile
    job = session.scalar(query.with_for_update(key_share=True) if lock else query)
    if job is None:
        raise NotFound("job", job_id)
    return job


def lock_study(session: Session, study_id: str) -> Study:
    """The study as it is now, its row locked on PostgreSQL: ending, cancelling and retrying wait for each other.

    Raises:
        NotFound: no such study.
    """
    query = select(Study).where(Study.id == study_id).execution_options(populate_existing=True)
    # as for a job: a worker's event names the study, and must not wait for whoever waits for that worker's job
    study = session.scalar(query.with_for_update(key_share=True))
    if study is None:
        raise NotFound("study", study_id)
    return study


def change_state(
    session: Session,
    job: Job,
    to: JobState,
    *,
    attempt_id: str | None = None,
    kind: str = "state",
    payload: dict[str, Any] | None = None,
    **values: Any,
) -> bool:
    """Move a job to ``to`` if nobody moved it meanwhile, and record the event; False when somebody did.

    Raises:
        WrongState: the present state does not allow this change.
    """
    was = JobState(job.state)
    if to not in ALLOWED[was]:
        raise WrongState(f"job {job.id} is {was.value}: it cannot become {to.value}")
    if to in TERMINAL:
        values.setdefault("finished_at", utc_now())
    statement = update(Job).where(Job.id == job.id, Job.state == was).values(state=to.value, **values)
    if session.execute(statement.execution_options(synchronize_session=False)).rowcount == 0:  # type: ignore[attr-defined]
        return False
    session.refresh(job)
    record_event(session, job, kind, attempt_id=attempt_id, payload=payload)
    return True


def add_attempt(session: Session, job: Job, *, wait_s: float = 0.0) -> Attempt:
    """A fresh attempt of a queued worker job; the relay will hand it to RQ, after ``wait_s`` seconds."""
    if job.kind not in WORKER_KINDS:
        raise WrongState(f"{job.kind} jobs run in the server and have no attempts")
    last = session.scalar(
        select(Attempt.number).where(Attempt.job_id == job.id).order_by(Attempt.number.desc()).limit(1)
    )
    attempt = Attempt(
        id=new_id("att"),
        job_id=job.id,
        number=(last or 0) + 1,
        state=AttemptState.QUEUED.value,
        available_at=db_now(wait_s) if wait_s > 0 else None,
    )
    session.add(attempt)
    session.flush()
    return attempt


def queue_job(session: Session, job: Job, *, wait_s: float = 0.0, **values: Any) -> bool:
    """Make a job ready to run, with a new attempt if a worker runs it; not before ``wait_s`` seconds from now."""
    cleared = {"finished_at": None, "error": None, "cancel_requested": False, "pause_requested": False}
    waits = {"message": f"tried again in {wait_s:.1f} s", "wait_s": round(wait_s, 3)} if wait_s > 0 else None
    if not change_state(session, job, JobState.QUEUED, payload=waits, **(cleared | values)):
        return False
    if job.kind in WORKER_KINDS:
        add_attempt(session, job, wait_s=wait_s)
    return True


def live_attempt(session: Session, job_id: str) -> Attempt | None:
    """The attempt that is queued or running, if there is one (a unique index allows no second)."""
    return session.scalar(
        select(Attempt)
        .where(Attempt.job_id == job_id, Attempt.state.in_([AttemptState.QUEUED.value, AttemptState.RUNNING.value]))
        .execution_options(populate_existing=True)
    )


def end_queued_attempt(session: Session, job: Job, state: AttemptState) -> None:
    """Close the attempt of a job that is not to run now; nothing where none is queued."""
    attempt = live_attempt(session, job.id)
    if attempt is not None and attempt.state == AttemptState.QUEUED:
        attempt.state = state.value
        attempt.finished_at = utc_now()
        session.flush()
