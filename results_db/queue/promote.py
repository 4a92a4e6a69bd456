"""What the server's advance loop does with jobs: promote what waits, run what needs no worker, skip what cannot run."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from results_db.clock import utc_now
from results_db.queries.parts import layer_of, parts_among
from results_db.queue.control import queue_runs
from results_db.queue.inputs import can_do_without, not_needed, resolve_inputs
from results_db.queue.split import split_waiting
from results_db.queue.transitions import change_state, end_queued_attempt, get_job, queue_job
from results_db.states import TERMINAL, WORKER_KINDS, AttemptState, JobKind, JobState
from results_db.tables import Job

#: code of a job that is skipped since a job before it found that there is nothing to do
_NOT_NEEDED = "not-needed"


def promote_waiting(session: Session) -> int:
    """Queue every waiting job whose dependencies have ended well, skip those that cannot run; the number changed.

    A job with ``run_when = "finished"`` (a gate) runs whatever became of its dependencies, any other may do without
    those that its inputs call optional. What turns out not to be needed is skipped too, and what builds on it. A sweep
    is split into its layers first, and fails where one of them did.
    """
    changed = 0
    waiting = session.scalars(
        select(Job).where(Job.state == JobState.WAITING.value).order_by(Job.position, Job.id)
    ).all()
    wanted = {dep for job in waiting for dep in job.depends_on}
    states = _by_id(session, wanted)
    for job in waiting:
        before = [states[dep] for dep in job.depends_on]
        if any(JobState(dep.state) not in TERMINAL for dep in before):
            continue
        failed = [dep for dep in before if dep.state != JobState.SUCCEEDED]
        parts = parts_among(job, before)
        if broken := [part for part in parts if part in failed]:
            cause = _cause(broken, len(parts))
            changed += change_state(session, job, JobState.FAILED, payload=cause, error=cause)
            continue
        optional = can_do_without(job.inputs)
        missed = [dep for dep in failed if dep.id not in optional]
        if missed and job.run_when != "finished":
            changed += _skip(session, job, _because_of(missed[0]))
            continue
        if why := not_needed(job.inputs, states):
            changed += _skip(session, job, {"code": _NOT_NEEDED, "message": why})
            continue
        params = job.params | resolve_inputs(job.inputs, states)
        if job.kind == JobKind.SWEEP and not parts and split_waiting(session, job, params):
            changed += 1
            continue
        changed += queue_job(session, job, params=params)
    return changed


def skip_rest_of_study(session: Session, study_id: str, why: str) -> int:
    """Skip every job of a study that has not begun, queued layers of a split sweep included: a gate said NO-GO. The
    number of jobs skipped.
    """
    not_begun = [state.value for state in (JobState.WAITING, JobState.PAUSED, JobState.QUEUED)]
    pending = session.scalars(select(Job.id).where(Job.study_id == study_id, Job.state.in_(not_begun))).all()
    error = {"code": "skipped", "message": why}
    skipped = 0
    for job_id in pending:
        # its row before its attempt's, as everybody who touches a queued attempt
        job = get_job(session, job_id, lock=True)
        if job.state in not_begun:
            end_queued_attempt(session, job, AttemptState.RELEASED)
            skipped += change_state(session, job, JobState.SKIPPED, payload={"message": why}, error=error)
    return skipped


def next_server_job(session: Session) -> Job | None:
    """Claim the most urgent queued job that the server itself runs (fit, allocate, gate); None when there is none, or
    the queue is paused."""
    kinds = [str(kind) for kind in WORKER_KINDS]
    job = session.scalar(
        select(Job)
        .where(Job.state == JobState.QUEUED.value, Job.kind.not_in(kinds), queue_runs())
        .order_by(Job.priority.desc(), Job.position, Job.id)
        .limit(1)
    )
    if job is None:
        return None
    return job if change_state(session, job, JobState.RUNNING, started_at=utc_now()) else None


def requeue_server_jobs(session: Session) -> int:
    """Server jobs that were running when the last server died run again (they touch only SQL). Only the one server that
    turns the advance loop may call this, between two of its jobs: nobody runs one then."""
    kinds = [str(kind) for kind in WORKER_KINDS]
    orphans = session.scalars(select(Job).where(Job.state == JobState.RUNNING.value, Job.kind.not_in(kinds))).all()
    return sum(queue_job(session, get_job(session, job.id, lock=True)) for job in orphans)


def _skip(session: Session, job: Job, why: dict[str, Any]) -> bool:
    return change_state(session, job, JobState.SKIPPED, payload={"message": why["message"]}, error=why)


def _because_of(needed: Job) -> dict[str, Any]:
    """Why a job is skipped that builds on one which did not succeed."""
    error = needed.error or {}
    if needed.state == JobState.SKIPPED and error.get("code") == _NOT_NEEDED:
        return {"code": _NOT_NEEDED, "message": error["message"]}
    why = f"it needs {needed.step or needed.kind} ({needed.id}), which is {needed.state}"
    return {"code": "skipped", "message": why}


def _cause(broken: list[Job], n_parts: int) -> dict[str, Any]:
    """Why a split sweep fails: what the first of its broken layers says."""
    first = broken[0]
    error = first.error or {}
    others = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
    why = error.get("message") or f"the job is {first.state}"
    return error | {
        "code": error.get("code") or "part-failed",
        "message": (
            f"layer {layer_of(first)} ({first.id}) is {first.state}{others}: {why}. What was measured is kept, of the "
            f"other {n_parts - len(broken)} layers all: a retry runs what is missing"
        ),
        "retryable": False,
    }


def _by_id(session: Session, ids: set[str]) -> dict[str, Job]:
    if not ids:
        return {}
    return {job.id: job for job in session.scalars(select(Job).where(Job.id.in_(ids)))}
