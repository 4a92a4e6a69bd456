"""Submit, cancel, pause, resume, retry: what people ask of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from results_db.errors import WrongState
from results_db.ids import new_id
from results_db.logs import current_trace
from results_db.queries.parts import part_of, parts_of
from results_db.queue.events import record_event
from results_db.queue.lease import counted_attempts
from results_db.queue.transitions import (
    add_attempt,
    change_state,
    end_queued_attempt,
    get_job,
    lock_study,
    queue_job,
)
from results_db.states import TERMINAL, WORKER_KINDS, AttemptState, JobKind, JobState, StudyState
from results_db.tables import Job

#: in ``session.info``: the priority of jobs that are submitted without one
PRIORITY = "priority"


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
    priority: int | None = None,
    max_attempts: int = 3,
    id: str | None = None,
    trace_id: str | None = None,
) -> Job:
    """Write a job, its first attempt and its event in the caller's transaction.

    ``trace_id`` defaults to that of the request that this code runs for, ``priority`` to ``session.info[PRIORITY]``, or
    0: jobs of higher priority go first.

    A job without dependencies is queued at once, others wait. Redis is not touched: the relay rings later.
    """
    job = Job(
        id=id or new_id("job"),
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
        priority=session.info.get(PRIORITY, 0) if priority is None else priority,
        max_attempts=max_attempts,
        trace_id=trace_id or current_trace(),
    )
    session.add(job)
    session.flush()
    record_event(session, job, "state")
    if job.state == JobState.QUEUED and job.kind in WORKER_KINDS:
        add_attempt(session, job)
    return job


def cancel_job(session: Session, job_id: str) -> Job:
    """Cancel at once what is not running; ask a running job to stop at its next heartbeat.

    The parts of a split sweep are cancelled with it.

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
    end_queued_attempt(session, job, AttemptState.CANCELLED)
    change_state(session, job, JobState.CANCELLED)
    for part in parts_of(session, job):
        if JobState(part.state) not in TERMINAL and not part.cancel_requested:
            cancel_job(session, part.id)
    return job


def pause_job(session: Session, job_id: str) -> Job:
    """Pause: a queued or waiting job at once, a running one at its next heartbeat (its attempt is released).

    The parts of a split sweep are paused with it.

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
    end_queued_attempt(session, job, AttemptState.RELEASED)
    change_state(session, job, JobState.PAUSED)
    for part in parts_of(session, job):
        if part.state in (JobState.QUEUED, JobState.RUNNING) and not part.pause_requested:
            pause_job(session, part.id)
    return job


def resume_job(session: Session, job_id: str) -> Job:
    """Queue a paused job again (or let it wait for its dependencies), and the parts of a split sweep with it.

    A running job that was asked to pause and has not come to a stop yet goes on.

    Raises:
        WrongState: the job is not paused, and nobody asked it to.
    """
    job = get_job(session, job_id, lock=True)
    if job.state == JobState.RUNNING and job.pause_requested:
        job.pause_requested = False
        record_event(session, job, "note", payload={"message": "pause withdrawn"})
        return job
    if job.state != JobState.PAUSED:
        raise WrongState(f"job {job.id} is {job.state}: only a paused job can be resumed")
    _back_to_start(session, job)
    for part in parts_of(session, job):
        # read under its lock: its worker may be coming to the stop that it was asked for
        part = get_job(session, part.id, lock=True)
        if part.state == JobState.PAUSED or part.pause_requested:
            resume_job(session, part.id)
    return job


def set_priority(session: Session, job_id: str, priority: int) -> Job:
    """Let a job that has not ended go before those of lower priority, and the parts of a split sweep with it.

    It counts from the next claim on: what runs already is not interrupted.

    Raises:
        WrongState: the job has ended.
    """
    job = get_job(session, job_id, lock=True)
    if JobState(job.state) in TERMINAL:
        raise WrongState(f"job {job.id} is already {job.state}: only a job that has not ended has an order")
    if job.priority != priority:
        job.priority = priority
        record_event(session, job, "note", payload={"message": f"priority {priority}", "priority": priority})
    for part in parts_of(session, job):
        if JobState(part.state) not in TERMINAL:
            set_priority(session, part.id, priority)
    return job


def retry_job(session: Session, job_id: str) -> Job:
    """Give a job that failed, died, was cancelled or skipped its full number of attempts again.

    What it recorded is kept. Jobs of the same study that were skipped after it wait again, and the study runs on. A
    split sweep retries those of its parts that did not succeed; a part that is retried takes its whole with it.

    Raises:
        WrongState: the job is live or has succeeded.
    """
    looked_at = get_job(session, job_id)
    # the study's row first, then the whole's, as everybody who touches more than one
    study = None if looked_at.study_id is None else lock_study(session, looked_at.study_id)
    whole_id = part_of(looked_at.params)
    whole = None if whole_id is None else get_job(session, whole_id, lock=True)
    job = get_job(session, job_id, lock=True)
    if not _can_be_retried(job):
        raise WrongState(f"job {job.id} is {job.state}: only failed, dead, cancelled or skipped jobs can be retried")
    _try_again(session, job)
    for part in parts_of(session, job):
        if _can_be_retried(part):
            _try_again(session, part)
    if whole is not None and _can_be_retried(whole):
        _try_again(session, whole)
    if study is not None:
        study.state, study.reason, study.finished_at = StudyState.RUNNING.value, None, None
        skipped = select(Job).where(
            Job.study_id == job.study_id, Job.state == JobState.SKIPPED.value, Job.position > job.position
        )
        for later in session.scalars(skipped).all():
            change_state(session, later, JobState.WAITING, finished_at=None, error=None)
    return job


def _can_be_retried(job: Job) -> bool:
    return JobState(job.state) in TERMINAL and job.state != JobState.SUCCEEDED


def _try_again(session: Session, job: Job) -> None:
    job.max_attempts += counted_attempts(session, job.id)
    session.flush()
    _back_to_start(session, job)


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
