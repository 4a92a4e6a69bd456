"""/api/v1/probes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from sqlalchemy import select
from starlette.responses import Response

from results_db.params import ProbeParams
from results_db.tables import Throughput
from server.jobs.schemas import JobRow, job_accepted
from server.kit.answers import Answer
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import PageRequest, listing, paginate
from server.kit.priority import SubmitSession
from server.kit.rows import filtered, get_row
from server.kit.units import ReadSession
from server.probes.schemas import ThroughputPage, ThroughputRow
from server.probes.service import submit_probe

router = APIRouter(prefix="/probes", tags=["plans"], route_class=IdempotentRoute)

Page = Annotated[PageRequest, Depends(listing(Throughput, "created_at", "device_kind", "device_name", "hostname"))]


@router.post(
    "", status_code=202, summary="Measure what a worker's device does in a second", responses={202: {"model": JobRow}}
)
def create_probe(params: ProbeParams, session: SubmitSession) -> Response:
    """A job of a few seconds on the worker that takes it."""
    return job_accepted(submit_probe(session, params))


@router.get("", summary="Measured rates, newest first", responses={200: {"model": ThroughputPage}})
def list_probes(
    session: ReadSession,
    page: Page,
    device_kind: str | None = None,
    hostname: str | None = None,
    job_id: str | None = None,
) -> Response:
    """What plans are priced with: the newest of a device counts."""
    filters = {Throughput.device_kind: device_kind, Throughput.hostname: hostname, Throughput.job_id: job_id}
    return Answer(paginate(session, filtered(select(Throughput), filters), page))


@router.get("/{throughput_id}", summary="The rates that one probe measured", responses={200: {"model": ThroughputRow}})
def get_probe(throughput_id: str, session: ReadSession) -> Response:
    """Rates a second, with the device and the number of threads that they hold for."""
    return Answer(get_row(session, Throughput, throughput_id).as_dict())
