"""/livez, /readyz and /metrics, at the root and under /api/v1."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from server.health.metrics import Metrics
from server.health.readiness import readiness
from server.health.schemas import Live, Readiness
from server.kit.answers import Answer
from server.security.principal import principal_of

router = APIRouter(tags=["health"])


@router.get("/livez", summary="The process answers; nothing else is asked", responses={200: {"model": Live}})
async def livez() -> dict[str, Any]:
    """For whoever restarts a process that hangs. It needs no token and touches neither database nor Redis."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="Whether the server can do its work; 503 names what is not ready",
    responses={200: {"model": Readiness}, 503: {"model": Readiness, "description": "Something is not ready"}},
)
def readyz(request: Request) -> Response:
    """Database, schema, relay, workers (for information), Redis, advance loop and disk. It needs no token: a stranger
    learns which check failed, whoever may read learns why."""
    state = request.app.state
    checks = readiness(state.database, state.loop, state.settings)
    ready = all(check.ok for check in checks.values())
    told = principal_of(request) is not None
    content = {
        "status": "ok" if ready else "not ready",
        "checks": {
            name: {"ok": check.ok} | ({"detail": check.detail} if told else {}) for name, check in checks.items()
        },
    }
    return Answer(content, status_code=200 if ready else 503)


@router.get("/metrics", summary="Metrics in Prometheus' text form", response_class=Response)
def metrics(request: Request) -> Response:
    """Jobs and attempts by state, the queue's age, lost workers, measurements, requests and their seconds, open event
    streams."""
    found: Metrics = request.app.state.metrics
    return Response(found.text(), media_type=CONTENT_TYPE_LATEST)
