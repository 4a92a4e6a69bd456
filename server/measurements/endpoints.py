"""/api/v1/measurements."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response, StreamingResponse

from results_db.tables import Measurement
from server.kit.answers import Answer
from server.kit.pagination import PageRequest, listing, paginate
from server.kit.units import AppDatabase, ReadSession
from server.measurements.schemas import Filter, MeasurementPage
from server.measurements.service import export_csv, export_jsonl

router = APIRouter(prefix="/measurements", tags=["measurements"])

_SORTS = ("created_at", "layer_idx", "projection", "b_q", "rank", "codebook", "nbytes", "seconds")
_ERRORS = ("raw_mse", "normalized_mse", "calibration_weighted_error")
Page = Annotated[PageRequest, Depends(listing(Measurement, *_SORTS, *_ERRORS))]


@router.get("", summary="Measurements, newest first", responses={200: {"model": MeasurementPage}})
def list_measurements(session: ReadSession, page: Page, only: Filter) -> Response:
    """Error and bytes of each (matrix, config). Exports give all of them at once: ``GET /exports/measurements``."""
    return Answer(paginate(session, only.query(), page))


@router.get("/export", summary="All measurements that match, streamed", response_class=StreamingResponse)
def export_measurements(
    database: AppDatabase,
    only: Filter,
    format_: Annotated[Literal["jsonl", "csv"], Query(alias="format")] = "jsonl",
) -> Response:
    export, media_type = (
        (export_jsonl, "application/x-ndjson") if format_ == "jsonl" else (export_csv, "text/csv; charset=utf-8")
    )
    return StreamingResponse(
        export(database, only.query()),
        media_type=media_type,
        headers={"Content-Disposition": f'attachment; filename="measurements.{format_}"'},
    )
