"""POST /api/v1/jobs/cancel and /jobs/retry: many jobs in one request.

They are changed in chunks, each a short transaction: a SQLite database has one writer, and workers must record
meanwhile. Each job is changed behind a savepoint of its own, so that one that refuses takes nothing from the others. A
request that breaks off is sent again: what it had changed already is then unchanged.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, Self

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import Select, func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from starlette.responses import Response

from results_db.errors import NotFound, WrongState
from results_db.queue.submit import cancel_job, retry_job
from results_db.states import TERMINAL, JobKind, JobState
from results_db.tables import Job
from server.kit.answers import Answer
from server.kit.idempotency import IdempotentRoute
from server.kit.rows import filtered, one_of
from server.kit.units import Units, WriteUnits

log = logging.getLogger(__name__)

MOST = 1000
#: jobs changed in one transaction
CHUNK = 50
_MOST_TRIES = 5
#: PostgreSQL's deadlock_detected
_DEADLOCK = "40P01"

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=IdempotentRoute)


class BulkRequest(BaseModel):
    """Which jobs: their ids, or filters of which all that are given hold."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"ids": ["job_0192f3a4b5c9f1e2d3c4b5a", "job_0192f3a4b5d4b7a6f0e1d2c"]},
                {"state": ["failed", "dead"], "study_id": "study_0192f3a4b5c0a1b2c3d4e5f", "dry_run": True},
            ]
        },
    )

    ids: list[str] | None = Field(default=None, min_length=1, max_length=MOST)
    state: list[JobState] | None = Field(default=None, min_length=1)
    kind: list[JobKind] | None = Field(default=None, min_length=1)
    study_id: str | None = None
    model_id: str | None = None
    dry_run: bool = Field(default=False, description="tell what would happen, and change nothing")

    @model_validator(mode="after")
    def _ids_or_filters(self) -> Self:
        filters = (self.state, self.kind, self.study_id, self.model_id)
        if (self.ids is None) == all(value is None for value in filters):
            raise ValueError("give either ids, or at least one of state, kind, study_id, model_id")
        return self


class BulkItem(BaseModel):
    """What became of one job."""

    id: str
    #: unchanged: it already was as wished, so the request may be sent again
    outcome: Literal["changed", "unchanged", "refused"]
    state: str | None = Field(description="after it; null where there is no such job")
    problem: str | None = Field(default=None, description="slug of the problem, where it was refused")
    detail: str | None = None


class BulkAnswer(BaseModel):
    """What became of each job, in the order in which they were taken."""

    dry_run: bool
    changed: int
    unchanged: int
    refused: int
    left: int = Field(description=f"jobs that match beyond the {MOST} that one request takes: send it again")
    items: list[BulkItem]


@router.post("/cancel", summary="Cancel many jobs", responses={200: {"model": BulkAnswer}})
def cancel_jobs(request: BulkRequest, units: WriteUnits) -> Response:
    """By ids or by filters, in chunks: one that breaks off may be sent again. What has not started ends at once, what
    runs is asked to stop; what was recorded stays.

    Jobs that are cancelled already are ``unchanged``; those that ended otherwise are ``refused``.
    """
    return Answer(_each(units, request, cancel_job, _is_cancelled, [s for s in JobState if s not in TERMINAL]))


@router.post("/retry", summary="Run many jobs again", responses={200: {"model": BulkAnswer}})
def retry_jobs(request: BulkRequest, units: WriteUnits) -> Response:
    """By ids or by filters: failed, dead, cancelled and skipped jobs get their full number of attempts again.

    Jobs that wait or run already are ``unchanged``; those that succeeded or are paused are ``refused``.
    """
    return Answer(_each(units, request, retry_job, _is_live, [*TERMINAL - {JobState.SUCCEEDED}]))


def _is_cancelled(job: Job) -> bool:
    return job.state == JobState.CANCELLED or (job.state == JobState.RUNNING and job.cancel_requested)


def _is_live(job: Job) -> bool:
    return job.state in (JobState.WAITING, JobState.QUEUED) or (
        job.state == JobState.RUNNING and not job.cancel_requested
    )


def _each(
    units: Units,
    request: BulkRequest,
    change: Callable[[Session, str], Job],
    is_done: Callable[[Job], bool],
    states: list[JobState],
) -> BulkAnswer:
    with units.read() as session:
        ids, left = _find(session, request, states)
    items: list[BulkItem] = []
    #: of a dry run: jobs that what was undone had changed as well, and their states
    moved: dict[str, str] = {}
    for start in range(0, len(ids), CHUNK):
        some, rest = ids[start : start + CHUNK], ids[start + CHUNK :]
        items += _waiting_for_others(units, partial(_chunk, some, rest, moved, change, is_done, request.dry_run))
    units.write_last()
    counts = Counter(item.outcome for item in items)
    return BulkAnswer(
        dry_run=request.dry_run,
        changed=counts["changed"],
        unchanged=counts["unchanged"],
        refused=counts["refused"],
        left=left,
        items=items,
    )


def _waiting_for_others(units: Units, run: Callable[[Session], list[BulkItem]]) -> list[BulkItem]:
    """Run it in a transaction; again where PostgreSQL ended it since two waited for each other's jobs."""
    for _ in range(_MOST_TRIES - 1):
        try:
            with units.write() as session:
                return run(session)
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != _DEADLOCK:
                raise
            log.info("a bulk request and another waited for each other's jobs: this one begins its chunk again")
    with units.write() as session:
        return run(session)


def _chunk(
    ids: list[str],
    rest: list[str],
    moved: dict[str, str],
    change: Callable[[Session, str], Job],
    is_done: Callable[[Job], bool],
    dry_run: bool,
    session: Session,
) -> list[BulkItem]:
    """One transaction's jobs. A dry run does and undoes: what is told is what would have happened, step by step."""
    with session.begin_nested() as whole:
        items = list(_changes(session, ids, moved, change, is_done))
        if dry_run:
            session.flush()
            query = select(Job).where(Job.id.in_(rest)).execution_options(populate_existing=True)
            moved |= {job.id: job.state for job in session.scalars(query) if is_done(job)}
            whole.rollback()
    return items


def _find(session: Session, request: BulkRequest, states: list[JobState]) -> tuple[list[str], int]:
    """Ids of the jobs, and how many more match. Filters without a state take those that can be changed at all."""
    if request.ids is not None:
        return list(dict.fromkeys(request.ids)), 0
    query: Select[Any] = select(Job.id)
    query = filtered(query, {Job.study_id: request.study_id, Job.params["model_id"].as_string(): request.model_id})
    query = one_of(one_of(query, Job.kind, request.kind), Job.state, request.state or states)
    # as in a study: what comes first is retried first, and what waits for it is found waiting
    ids = session.scalars(query.order_by(Job.study_id, Job.position, Job.id).limit(MOST)).all()
    if len(ids) < MOST:
        return list(ids), 0
    return list(ids), (session.scalar(select(func.count()).select_from(query.subquery())) or 0) - MOST


def _changes(
    session: Session,
    ids: list[str],
    moved: dict[str, str],
    change: Callable[[Session, str], Job],
    is_done: Callable[[Job], bool],
) -> Iterator[BulkItem]:
    for id_ in ids:
        if id_ in moved:
            yield BulkItem(id=id_, outcome="unchanged", state=moved[id_])
            continue
        job = session.get(Job, id_, populate_existing=True)
        if job is not None and is_done(job):
            yield BulkItem(id=id_, outcome="unchanged", state=job.state)
            continue
        try:
            with session.begin_nested():
                state = change(session, id_).state
        except NotFound as error:
            yield BulkItem(id=id_, outcome="refused", state=None, problem="not-found", detail=str(error))
        except WrongState as error:
            now = session.get(Job, id_)
            yield BulkItem(
                id=id_,
                outcome="refused",
                state=None if now is None else now.state,
                problem="wrong-state",
                detail=str(error),
            )
        else:
            yield BulkItem(id=id_, outcome="changed", state=state)
