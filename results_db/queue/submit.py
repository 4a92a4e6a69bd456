"""Submit, cancel, pause, resume, retry: what people ask of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from results_db.clock import utc_now
from results_db.errors import WrongState
from results_db.ids import new_id
from results_db.queue.events import record_event
from results_db.queue.lease import counted_attempts
from results_db.queue.transitions import add_attempt, change_state, get_job, live_attempt, lock_study, queue_job
from results_db.states import TERMINAL, WORKER_KINDS, AttemptState, JobKind, JobState, StudyState
from results_db.tables import Job


def submit_job(
    session: Session,
    kind: JobKind,
    params: Mapping[str, Any],
    *,
    study_id: str | None = None,
    step: str | None = None,
    phase: int | None = None,
    position: int = 0,
    depends_on: Sequence[str] = (),
    inputs: Mapping[str, Any] | None = None,
    run_when: str = "succeeded",
    priority: int = 0,
    max_attempts: int = 3,
) -> Job:
    """Write a job, its first attempt and its event in the caller's transaction.

    A job without dependencies is queued at once, others wait. Redis is not touched: the relay rings later.
    """
    job = Job(
        id=new_id("job"),
        kind=JobKind(kind).value,
        state=(JobState.WAITING if depends_on else JobState.QUEUED).value,
        study_id=study_id,
        step=step,
        phase=phase,
        position=position,
        params=dict(params),
        inputs=dict(inputs or {}),
        depends_on=list(depends_on),
        run_when=run_when,
        priority=priority,
        max_attempts=max_attempts,
    )
    session.add(job)
    session.flush()
    record_event(session, job, "state")
    if job.state == JobState.QUEUED and job.kind in WORKER_KINDS:
        add_attempt(session, job)
    return job


def cancel_job(session: Session, job_id: str) -> Job:
    """Cancel at once what is not running; ask a running job to stop at its next heartbeat.

    Raises:
        NotFound: no such job.
        WrongState: the job has already ended.
    """
    job = get_job(session, job_id, lock=True)
    if JobState(job.state) in TERMINAL:
        raise WrongState(f"job {job.id} is already {job.state}: only a job that has not ended can be cancelled")
    if job.state == JobState.RUNNING and job.kind in WORKER_KINDS:
        job.cancel_requested = True
        record_event(session, job, "note", payload={"message": "cancel requested"})
        return job
    _end_queued_attempt(session, job, AttemptState.CANCELLED)
    change_state(session, job, JobState.CANCELLED)
    return job


def pause_job(session: Session, job_id: str) -> Job:
    """Pause: a queued or waiting job at once, a running one at its next heartbeat (its attempt is released).

    Raises:
        WrongState: the job has ended, or is paused already.
    """
    job = get_job(session, job_id, lock=True)
    if job.state == JobState.RUNNING:
        if job.kind not in WORKER_KINDS:
            raise WrongState(f"job {job.id} is a {job.kind} job: it ends within moments and cannot be paused")
        job.pause_requested = True
        record_event(session, job, "note", payload={"message": "pause requested"})
        return job
    if job.state not in (JobState.QUEUED, JobState.WAITING):
        raise WrongState(f"job {job.id} is {job.state}: only a waiting, queued or running job can be paused")
    _end_queued_attempt(session, job, AttemptState.RELEASED)
    change_state(session, job, JobState.PAUSED)
    return job


def resume_job(session: Session, job_id: str) -> Job:
    """Queue a paused job again (or let it wait for its dependencies).

    Raises:
        WrongState: the job is not paused.
    """
    job = get_job(session, job_id, lock=True)
    if job.state != JobState.PAUSED:
        raise WrongState(f"job {job.id} is {job.state}: only a paused job can be resumed")
    _back_to_start(session, job)
    return job


def retry_job(session: Session, job_id: str) -> Job:
    """Give a job that failed, died, was cancelled or skipped its full number of attempts again.

    What it recorded is kept. Jobs of the same study that were skipped after it wait again, and the study runs on.

    Raises:
        WrongState: the job is live or has succeeded.
    """
    job = get_job(session, job_id, lock=True)
    if JobState(job.state) not in TERMINAL or job.state == JobState.SUCCEEDED:
        raise WrongState(f"job {job.id} is {job.state}: only failed, dead, cancelled or skipped jobs can be retried")
    job.max_attempts += counted_attempts(session, job.id)
    session.flush()
    _back_to_start(session, job)
    if job.study_id is not None:
        study = lock_study(session, job.study_id)
        study.state, study.reason, study.finished_at = StudyState.RUNNING.value, None, None
        skipped = select(Job).where(
            Job.study_id == job.study_id, Job.state == JobState.SKIPPED.value, Job.position > job.position
        )
        for later in session.scalars(skipped).all():
            change_state(session, later, JobState.WAITING, finished_at=None, error=None)
    return job


def _back_to_start(session: Session, job: Job) -> None:
    if job.depends_on:
        change_state(
            session,
            job,
            JobState.WAITING,
            finished_at=None,
            error=None,
            cancel_requested=False,
            pause_requested=False,
        )
    else:
        queue_job(session, job)


def _end_queued_attempt(session: Session, job: Job, state: AttemptState) -> None:
    attempt = live_attempt(session, job.id)
    if attempt is not None and attempt.state == AttemptState.QUEUED:
        attempt.state = state.value
        attempt.finished_at = utc_now()
        session.flush()
