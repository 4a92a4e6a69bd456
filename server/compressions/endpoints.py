"""/api/v1/compressions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from sqlalchemy import select
from starlette.responses import Response

from results_db.tables import Compression
from server.allocations.stale import stale_warning
from server.compressions.schemas import CompressionPage, CompressionRequest, CompressionRow
from server.compressions.service import check_compression, submit_compression
from server.jobs.schemas import WarnedJobRow, job_accepted_with
from server.kit.answers import Answer
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import PageRequest, listing, paginate
from server.kit.priority import SubmitSession
from server.kit.rows import filtered, get_row
from server.kit.units import AppDatabase, AppSettings, ReadSession

router = APIRouter(prefix="/compressions", tags=["compressions"], route_class=IdempotentRoute)

Page = Annotated[PageRequest, Depends(listing(Compression, "created_at", "actual_bytes", "seconds"))]


@router.post(
    "",
    status_code=202,
    summary="Pack a model as an allocation, or the YAML of overrides, says",
    responses={202: {"model": WarnedJobRow}},
)
def create_compression(
    request: CompressionRequest, database: AppDatabase, settings: AppSettings, session: SubmitSession
) -> Response:
    """A job; allocations with equal choices share one packed model. ``warning`` says where the allocation is stale."""
    # overrides take seconds to read: on a reading transaction, so that no write lock is held meanwhile
    with database.read() as reading:
        checked = check_compression(reading, request, settings)
    job = submit_compression(session, checked)
    return job_accepted_with(job, stale_warning(session, [job.params["allocation_id"]]))


@router.get("", summary="Compressions, newest first", responses={200: {"model": CompressionPage}})
def list_compressions(
    session: ReadSession,
    page: Page,
    model_id: str | None = None,
    calibration_id: str | None = None,
    allocation_id: str | None = None,
    job_id: str | None = None,
) -> Response:
    """Packed models on disk, with the bytes that were promised and those that the files have."""
    filters = {
        Compression.model_id: model_id,
        Compression.calibration_id: calibration_id,
        Compression.allocation_id: allocation_id,
        Compression.job_id: job_id,
    }
    return Answer(paginate(session, filtered(select(Compression), filters), page))


@router.get("/{compression_id}", summary="One compression", responses={200: {"model": CompressionRow}})
def get_compression(compression_id: str, session: ReadSession) -> Response:
    """``actual_bytes`` are those of the weight files."""
    return Answer(get_row(session, Compression, compression_id))
