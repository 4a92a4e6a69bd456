"""/api/v1/jobs and the stream of all events."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from sqlalchemy import select
from starlette.responses import Response

from results_db.queue.submit import cancel_job, pause_job, resume_job, retry_job
from results_db.states import JobKind, JobState
from results_db.tables import Job, Study
from server.jobs.schemas import JobDetail, JobPage, JobRow
from server.jobs.service import describe_job, ended_job
from server.kit.answers import Answer
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import PageRequest, listing, paginate
from server.kit.rows import filtered, get_row, one_of
from server.kit.sse import AfterEvent, Streams, Topic, event_stream
from server.kit.units import AppDatabase, ReadSession, WriteSession

router = APIRouter(tags=["jobs"], route_class=IdempotentRoute)

JobId = Annotated[str, Path(examples=["job_0192f3a4b5c9f1e2d3c4b5a"])]


_ORDER = ("study_id", "position", "priority")
Page = Annotated[
    PageRequest,
    Depends(listing(Job, "created_at", "state", "kind", "step", "phase", *_ORDER, "started_at", "finished_at")),
]


@router.get("/jobs", summary="Jobs, newest first", responses={200: {"model": JobPage}})
def list_jobs(
    session: ReadSession,
    page: Page,
    state: Annotated[list[JobState] | None, Query(description="give it again for several")] = None,
    kind: Annotated[list[JobKind] | None, Query(description="give it again for several")] = None,
    study_id: str | None = None,
    step: str | None = None,
    phase: Annotated[int | None, Query(ge=0, le=6)] = None,
    model_id: str | None = None,
) -> Response:
    """Attempts are in ``GET /jobs/{job_id}`` alone."""
    filters = {Job.study_id: study_id, Job.step: step, Job.phase: phase, Job.params["model_id"].as_string(): model_id}
    query = one_of(one_of(filtered(select(Job), filters), Job.state, state), Job.kind, kind)
    return Answer(paginate(session, query, page))


@router.get("/jobs/{job_id}", summary="One job, with its attempts", responses={200: {"model": JobDetail}})
def get_job(job_id: JobId, session: ReadSession) -> Response:
    """Parameters, progress, result or error, and every attempt with its exit code, signal and peak memory."""
    return Answer(describe_job(session, job_id))


@router.post(
    "/jobs/{job_id}/cancel", summary="Cancel a job", operation_id="cancel_job", responses={200: {"model": JobRow}}
)
def cancel(job_id: JobId, session: WriteSession) -> Response:
    """What has not started ends at once; what runs is asked to stop. What was recorded stays."""
    return Answer(cancel_job(session, job_id))


@router.post(
    "/jobs/{job_id}/retry",
    summary="Run again what did not succeed",
    operation_id="retry_job",
    responses={200: {"model": JobRow}},
)
def retry(job_id: JobId, session: WriteSession) -> Response:
    """Its full number of attempts again; what was recorded is not measured again. Jobs skipped after it wait again."""
    return Answer(retry_job(session, job_id))


@router.post(
    "/jobs/{job_id}/pause", summary="Pause a job", operation_id="pause_job", responses={200: {"model": JobRow}}
)
def pause(job_id: JobId, session: WriteSession) -> Response:
    """A running one gives its work back after the cell that it measures."""
    return Answer(pause_job(session, job_id))


@router.post(
    "/jobs/{job_id}/resume",
    summary="Resume a paused job",
    operation_id="resume_job",
    responses={200: {"model": JobRow}},
)
def resume(job_id: JobId, session: WriteSession) -> Response:
    """It is queued again, or waits for its dependencies; what it recorded is kept."""
    return Answer(resume_job(session, job_id))


@router.get("/jobs/{job_id}/events", summary="The job's events (SSE), from the first to `end`")
def follow_job(job_id: JobId, database: AppDatabase, streams: Streams, after: AfterEvent) -> Response:
    """``id`` is the event's: send it as ``Last-Event-ID`` to go on where a connection broke."""
    with database.read() as session:
        get_row(session, Job, job_id)
    topic = Topic(job_id=job_id, ended=partial(ended_job, database, job_id))
    return event_stream(database, streams, topic, after)


@router.get("/events", summary="Events of all jobs (SSE); this stream does not end by itself")
def follow_all(database: AppDatabase, streams: Streams, after: AfterEvent, study_id: str | None = None) -> Response:
    """Of one study with ``study_id``. Replays what came after ``Last-Event-ID`` (or ``after``), then goes on."""
    if study_id is not None:
        with database.read() as session:
            get_row(session, Study, study_id)
    return event_stream(database, streams, Topic(study_id=study_id), after)
