"""/api/v1/queue."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from results_db.queue.control import pause_queue, resume_queue
from server.kit.answers import Answer
from server.kit.idempotency import IdempotentRoute
from server.kit.units import ReadSession, WriteSession
from server.queue.schemas import PauseRequest, QueueStatus
from server.queue.service import RedisError, describe_queue

router = APIRouter(prefix="/queue", tags=["queue"], route_class=IdempotentRoute)


@router.get("", summary="The queue's switch, what is in it, who works on it", responses={200: {"model": QueueStatus}})
def get_queue(request: Request, redis_error: RedisError, session: ReadSession) -> Response:
    """Jobs that have not ended by state and kind, what is due, workers, and whether Redis answers."""
    return Answer(describe_queue(session, request.app.state.loop, redis_error))


@router.post("/pause", summary="Hand out nothing more", responses={200: {"model": QueueStatus}})
def pause_the_queue(
    request: Request, redis_error: RedisError, session: WriteSession, pause: PauseRequest | None = None
) -> Response:
    """Nothing new begins until the queue is resumed, whatever was handed out before; what runs goes on. No attempt is
    counted. Paused again, it takes the new reason."""
    pause_queue(session, pause.reason if pause else None)
    return Answer(describe_queue(session, request.app.state.loop, redis_error))


@router.post("/resume", summary="Let the queue run again", responses={200: {"model": QueueStatus}})
def resume_the_queue(request: Request, redis_error: RedisError, session: WriteSession) -> Response:
    """What is due is handed out at once, the most urgent first. Nothing where the queue runs already."""
    resume_queue(session)
    return Answer(describe_queue(session, request.app.state.loop, redis_error))
