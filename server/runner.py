"""Run the jobs that need no worker: fit, allocate, gate. They touch only rows of the database."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from compress_core.analyze import GateThresholds
from compress_core.errors import CompressCoreError
from results_db import Database
from results_db.cause import cause_of
from results_db.errors import NotFound
from results_db.logs import bind
from results_db.params import AllocateParams, FitParams, GateParams
from results_db.queue.transitions import change_state, get_job, lock_study
from results_db.states import JobKind, JobState
from results_db.tables import Job, Study
from server.allocations.service import compute_allocation, save_allocation
from server.fits.records import job_result, save_fit
from server.fits.service import compute_fit
from server.gates.service import decide_gates, save_gates
from server.kit.problem import Problem

log = logging.getLogger(__name__)

#: stores what was computed, in the transaction that ends the job; returns the job's result
Save = Callable[[Session, Job], dict[str, Any]]


def run_server_job(database: Database, job: Job) -> None:
    """Compute on a reading transaction, then store and end the job in one writing transaction.

    Whatever goes wrong becomes the job's error; only a database that is away is raised, and the job runs again.
    """
    with bind(trace_id=job.trace_id, study_id=job.study_id, job_id=job.id):
        _run_bound(database, job)


def _run_bound(database: Database, job: Job) -> None:
    try:
        with database.read(computes=True) as session:
            save = _COMPUTE[JobKind(job.kind)](session, job)
        with database.write() as session:
            if job.study_id is not None:
                lock_study(session, job.study_id)  # before the job: a NO-GO ends both
            running = get_job(session, job.id, lock=True)
            if not _is_ours(running, job):
                return  # cancelled, or taken over by another server, meanwhile: nothing is stored
            result = save(session, running)
            change_state(session, running, JobState.SUCCEEDED, payload=result, result=result, error=None)
    except (OperationalError, InterfaceError):
        raise  # the job stays running, and the loop queues it again when the database is back
    except Exception as error:
        log.warning("%s job %s (%s) failed: %s", job.kind, job.id, job.step, error, exc_info=not _expected(error))
        with database.write() as session:
            running = get_job(session, job.id, lock=True)
            if _is_ours(running, job):
                cause = describe_error(error)
                change_state(session, running, JobState.FAILED, payload=cause, error=cause)


def _is_ours(running: Job, job: Job) -> bool:
    """Whether the job still runs, and since the moment at which this server took it: a server that was frozen finds
    that another one runs it anew."""
    return running.state == JobState.RUNNING and running.started_at == job.started_at


def describe_error(error: BaseException) -> dict[str, Any]:
    """The cause that a job shows."""
    match error:
        case Problem():
            code = error.slug
        case CompressCoreError():
            code = error.code
        case NotFound():
            code = "not-found"
        case _:
            code = "unexpected-error"
    cause = cause_of(error, code, retryable=False)
    smallest = getattr(error, "smallest_bytes", None)
    return cause if smallest is None else cause | {"smallest_bytes": smallest}


def _expected(error: BaseException) -> bool:
    return isinstance(error, Problem | CompressCoreError | NotFound)


def _fit(session: Session, job: Job) -> Save:
    study = None if job.study_id is None else session.get_one(Study, job.study_id)
    thresholds = GateThresholds.from_dict(study.config.get("gates") if study else None)
    params = FitParams.model_validate(job.params)
    # the plan: where the parametric model falls short, interpolate the measured cells instead
    draft = compute_fit(session, params, thresholds=thresholds, interpolate="where it falls short")

    def save(session: Session, job: Job) -> dict[str, Any]:
        return job_result(draft, save_fit(session, draft, job_id=job.id))

    return save


def _allocate(session: Session, job: Job) -> Save:
    draft = compute_allocation(session, AllocateParams.model_validate(job.params))

    def save(session: Session, job: Job) -> dict[str, Any]:
        allocations = save_allocation(session, draft, job_id=job.id, study_id=job.study_id)
        return {
            "allocation_id": allocations[0].id,
            "allocation_ids": [allocation.id for allocation in allocations],
            "total_bytes": allocations[0].total_bytes,
        }

    return save


def _gate(session: Session, job: Job) -> Save:
    study = session.get_one(Study, job.study_id)
    decided = decide_gates(session, study, GateParams.model_validate(job.params))

    def save(session: Session, job: Job) -> dict[str, Any]:
        return {"verdicts": save_gates(session, session.get_one(Study, job.study_id), job, decided)}

    return save


_COMPUTE: dict[JobKind, Callable[[Session, Job], Save]] = {
    JobKind.FIT: _fit,
    JobKind.ALLOCATE: _allocate,
    JobKind.GATE: _gate,
}
