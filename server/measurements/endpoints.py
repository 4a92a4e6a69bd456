"""/api/v1/measurements."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from results_db.tables import Measurement
from server.kit.answers import Answer
from server.kit.pagination import PageRequest, listing, paginate
from server.kit.units import ReadSession
from server.measurements.schemas import Filter, MeasurementPage

router = APIRouter(prefix="/measurements", tags=["measurements"])

_SORTS = ("created_at", "layer_idx", "projection", "b_q", "rank", "codebook", "nbytes", "seconds")
_ERRORS = ("raw_mse", "normalized_mse", "calibration_weighted_error")
Page = Annotated[PageRequest, Depends(listing(Measurement, *_SORTS, *_ERRORS))]


@router.get("", summary="Measurements, newest first", responses={200: {"model": MeasurementPage}})
def list_measurements(session: ReadSession, page: Page, only: Filter) -> Response:
    """Error and bytes of each (matrix, config). Exports give all of them at once: ``GET /exports/measurements``."""
    return Answer(paginate(session, only.query(), page))
