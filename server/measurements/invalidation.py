"""/api/v1/measurements: what counts no more."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path
from sqlalchemy import and_, select
from sqlalchemy.orm import Session
from starlette.responses import Response

from results_db.errors import NotFound
from results_db.retire import Retired, invalidate
from results_db.tables import Measurement, RetiredMeasurement
from server.kit.answers import Answer
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import LARGEST_ID, PageRequest, listing, paginate
from server.kit.problem import Problem, invalid
from server.kit.units import ReadSession, WriteSession
from server.measurements.schemas import Filter, InvalidateRequest, Invalidation, RetiredPage

router = APIRouter(prefix="/measurements", tags=["measurements"], route_class=IdempotentRoute)

_SORTS = ("retired_at", "created_at", "layer_idx", "projection", "b_q", "rank", "codebook")
Page = Annotated[PageRequest, Depends(listing(RetiredMeasurement, *_SORTS))]
MeasurementId = Annotated[int, Path(ge=0, le=LARGEST_ID, examples=[17])]


@router.get(
    "/retired", summary="Measurements that count no more, newest first", responses={200: {"model": RetiredPage}}
)
def list_retired(session: ReadSession, page: Page, only: Filter) -> Response:
    """``measurement_id`` is the id that it had, ``replaced_by_sweep_id`` the forced sweep that measured its cell again
    (null: a person invalidated it)."""
    return Answer(paginate(session, only.query(RetiredMeasurement), page))


@router.post("/invalidate", summary="Invalidate all that match", responses={200: {"model": Invalidation}})
def invalidate_measurements(request: InvalidateRequest, only: Filter, session: WriteSession) -> Response:
    """At least one of the list's filters says which. As for a single one; with ``dry_run`` nothing is written."""
    conditions = only.conditions()
    if not conditions:
        raise invalid(
            "",
            "name at least one filter, as for GET /api/v1/measurements: all measurements at once are not invalidated",
            slug="no-filter",
        )
    return _told(invalidate(session, and_(*conditions), request.reason.strip(), dry_run=request.dry_run), request)


@router.post(
    "/{measurement_id}/invalidate", summary="Invalidate one measurement", responses={200: {"model": Invalidation}}
)
def invalidate_measurement(
    measurement_id: MeasurementId, request: InvalidateRequest, session: WriteSession
) -> Response:
    """It is kept among the retired ones. Its cell is missing from now on: the next sweep that asks for it measures it.
    Fits, allocations and gates that were computed from it are marked stale, with this reason."""
    done = invalidate(session, Measurement.id == measurement_id, request.reason.strip(), dry_run=request.dry_run)
    if not done.measurements:
        _refuse(session, measurement_id)
    return _told(done, request)


def _told(done: Retired, request: InvalidateRequest) -> Response:
    return Answer({"dry_run": request.dry_run, "measurements": done.measurements, "stale": done.affected.ids()})


def _refuse(session: Session, measurement_id: int) -> None:
    """Say why there is no such measurement.

    Raises:
        Problem: already-retired, with the reason.
        NotFound: there never was one.
    """
    retired = session.scalar(select(RetiredMeasurement).where(RetiredMeasurement.measurement_id == measurement_id))
    if retired is None:
        raise NotFound("measurement", str(measurement_id))
    raise Problem(
        409,
        "already-retired",
        f"measurement {measurement_id} counts no more already: {retired.reason}. What is measured of its cell now has "
        "another id: list it with GET /api/v1/measurements",
        retired_id=retired.id,
    )
