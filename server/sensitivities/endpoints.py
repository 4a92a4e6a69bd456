"""/api/v1/sensitivities."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from sqlalchemy import select
from starlette.responses import Response

from results_db.params import SensitivityMethod, SensitivityParams
from results_db.tables import LayerFidelityRow, SensitivityAnchor, SensitivityEstimate
from server.jobs.schemas import JobRow, job_accepted
from server.kit.answers import Answer
from server.kit.checks import check_projection
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import PageRequest, listing, paginate
from server.kit.priority import SubmitSession
from server.kit.rows import Number, filtered
from server.kit.units import AppSettings, ReadSession
from server.sensitivities.schemas import AnchorPage, EstimatePage, FidelityPage
from server.sensitivities.service import submit_sensitivity

router = APIRouter(prefix="/sensitivities", tags=["sensitivities"], route_class=IdempotentRoute)

_PLACE = ("created_at", "layer_idx", "projection", "method")
EstimateList = Annotated[PageRequest, Depends(listing(SensitivityEstimate, *_PLACE, "value", "own_weight"))]
AnchorList = Annotated[PageRequest, Depends(listing(SensitivityAnchor, *_PLACE, "sensitivity", "kl"))]
FidelityList = Annotated[PageRequest, Depends(listing(LayerFidelityRow, "created_at", "layer_idx", "relative_error"))]


@router.post(
    "",
    status_code=202,
    summary="Compress one matrix at a time and measure the KL of the output",
    responses={202: {"model": JobRow}},
)
def create_sensitivity(params: SensitivityParams, settings: AppSettings, session: SubmitSession) -> Response:
    """A job; anchors that were measured before are reused."""
    return job_accepted(submit_sensitivity(session, params, settings))


@router.get(
    "", summary="What a unit of each matrix's error costs, with its interval", responses={200: {"model": EstimatePage}}
)
def list_estimates(
    session: ReadSession,
    page: EstimateList,
    model_id: str | None = None,
    calibration_id: str | None = None,
    job_id: str | None = None,
    method: SensitivityMethod | None = None,
    layer_idx: Number = None,
    projection: str | None = None,
) -> Response:
    """Nats of KL per unit of calibration_weighted_error, one row a matrix and method."""
    check_projection(projection)
    filters = {
        SensitivityEstimate.model_id: model_id,
        SensitivityEstimate.calibration_id: calibration_id,
        SensitivityEstimate.job_id: job_id,
        SensitivityEstimate.method: method,
        SensitivityEstimate.layer_idx: layer_idx,
        SensitivityEstimate.projection: projection,
    }
    return Answer(paginate(session, filtered(select(SensitivityEstimate), filters), page))


@router.get(
    "/anchors",
    summary="The measurements behind the sensitivities, one row a matrix and anchor",
    responses={200: {"model": AnchorPage}},
)
def list_anchors(
    session: ReadSession,
    page: AnchorList,
    model_id: str | None = None,
    calibration_id: str | None = None,
    job_id: str | None = None,
    method: SensitivityMethod | None = None,
    layer_idx: Number = None,
    projection: str | None = None,
) -> Response:
    """One matrix alone was changed at one anchor config: what it cost in KL, and per unit of error."""
    check_projection(projection)
    filters = {
        SensitivityAnchor.model_id: model_id,
        SensitivityAnchor.calibration_id: calibration_id,
        SensitivityAnchor.job_id: job_id,
        SensitivityAnchor.method: method,
        SensitivityAnchor.layer_idx: layer_idx,
        SensitivityAnchor.projection: projection,
    }
    return Answer(paginate(session, filtered(select(SensitivityAnchor), filters), page))


@router.get(
    "/layers",
    summary="How true each block's output stays when the block alone is compressed",
    responses={200: {"model": FidelityPage}},
)
def list_fidelities(
    session: ReadSession,
    page: FidelityList,
    model_id: str | None = None,
    calibration_id: str | None = None,
    job_id: str | None = None,
    layer_idx: Number = None,
) -> Response:
    """Cosine and relative error of a block's outputs, with and without compression."""
    filters = {
        LayerFidelityRow.model_id: model_id,
        LayerFidelityRow.calibration_id: calibration_id,
        LayerFidelityRow.job_id: job_id,
        LayerFidelityRow.layer_idx: layer_idx,
    }
    return Answer(paginate(session, filtered(select(LayerFidelityRow), filters), page))
