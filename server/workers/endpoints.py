"""/api/v1/workers."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path
from sqlalchemy import select
from starlette.responses import Response

from results_db.queue.workers import drain_worker
from results_db.tables import Worker
from server.kit.answers import Answer, page_model, row_model
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import PageRequest, listing, paginate
from server.kit.rows import filtered
from server.kit.units import ReadSession, WriteSession

router = APIRouter(prefix="/workers", tags=["workers"], route_class=IdempotentRoute)

Page = Annotated[PageRequest, Depends(listing(Worker, "created_at", "name", "hostname", "state", "heartbeat_at"))]


@router.get("", summary="Workers, newest first", responses={200: {"model": page_model(row_model(Worker))}})
def list_workers(
    session: ReadSession,
    page: Page,
    state: Literal["up", "down"] | None = None,
    hostname: str | None = None,
    device_kind: str | None = None,
) -> Response:
    """Every worker process that ever registered; ``up`` are those whose heartbeat is fresh."""
    filters = {Worker.state: state, Worker.hostname: hostname, Worker.device_kind: device_kind}
    return Answer(paginate(session, filtered(select(Worker), filters), page))


@router.post("/{worker_id}/drain", summary="Let a worker finish and end", responses={200: {"model": row_model(Worker)}})
def drain(worker_id: Annotated[str, Path(examples=["wrk_0192f3a4b5c9f1e2d3c4b5a"])], session: WriteSession) -> Response:
    """It finishes the job that it runs, takes nothing more and exits with code 0; an idle one within seconds. 409 where
    it is down."""
    return Answer(drain_worker(session, worker_id))
