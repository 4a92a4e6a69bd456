"""/api/v1/probes."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy import select
from starlette.responses import Response

from results_db.params import ProbeParams
from results_db.tables import Throughput
from server.jobs.schemas import JobRow, job_accepted
from server.kit.answers import Answer
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import PageQuery, paginate
from server.kit.rows import filtered, get_row
from server.kit.units import ReadSession, WriteSession
from server.probes.schemas import ThroughputPage, ThroughputRow
from server.probes.service import submit_probe

router = APIRouter(prefix="/probes", tags=["plans"], route_class=IdempotentRoute)


@router.post(
    "", status_code=202, summary="Measure what a worker's device does in a second", responses={202: {"model": JobRow}}
)
def create_probe(params: ProbeParams, session: WriteSession) -> Response:
    return job_accepted(submit_probe(session, params))


@router.get("", summary="Measured rates, newest first", responses={200: {"model": ThroughputPage}})
def list_probes(session: ReadSession, page: PageQuery, device_kind: str | None = None) -> Response:
    return Answer(
        paginate(session, filtered(select(Throughput), {Throughput.device_kind: device_kind}), Throughput.id, page)
    )


@router.get("/{throughput_id}", summary="The rates that one probe measured", responses={200: {"model": ThroughputRow}})
def get_probe(throughput_id: str, session: ReadSession) -> Response:
    return Answer(get_row(session, Throughput, throughput_id).as_dict())
