"""/api/v1/plans."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from server.kit.answers import Answer
from server.kit.idempotency import IdempotentRoute
from server.kit.units import AppSettings, ReadSession
from server.plans.schemas import Plan, PlanRequest
from server.plans.service import make_plan
from server.studies.body import openapi_body, read_study

router = APIRouter(prefix="/plans", tags=["plans"], route_class=IdempotentRoute)


async def _request(request: Request) -> PlanRequest:
    """The config and the device in the body, as JSON or as YAML."""
    return await read_study(request, PlanRequest)


@router.post(
    "",
    summary="What a study would cost, and whether it fits: JSON {config, device}, or the config itself as YAML",
    responses={200: {"model": Plan}},
    openapi_extra=openapi_body(PlanRequest),
)
def create_plan(
    request: Annotated[PlanRequest, Depends(_request)],
    settings: AppSettings,
    session: ReadSession,
    device: Annotated[str | None, Query(max_length=200, description="for a YAML body")] = None,
) -> Response:
    """Bytes, seconds and disk of every step, from measured rates where a probe gave some. Nothing is stored."""
    asked = request if device is None else request.model_copy(update={"device": device})
    return Answer(make_plan(session, asked, settings))
