"""Server-sent events from job_events: replay by id, then follow.

A database session is held for one poll only, never across an await.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
from anyio import to_thread
from fastapi import Depends, Header, Query
from sse_starlette import EventSourceResponse, ServerSentEvent

from results_db import Database
from results_db.queue.events import events_after
from results_db.tables import JobEvent
from server.kit.answers import to_json
from server.kit.pagination import LARGEST_ID
from server.kit.problem import invalid

POLL_S = 0.3
PING_S = 15
#: ids are handed out before they are committed: on PostgreSQL a lower one can appear after a higher one, so the last
#: few are looked at again
_LOOK_BACK = 64
_BATCH = 500


@dataclass(frozen=True, slots=True)
class Topic:
    """What a stream is about."""

    job_id: str | None = None
    study_id: str | None = None
    #: the final state of what the stream follows, or None while it goes on; asked before each poll
    ended: Callable[[], Any] | None = None


def _after(
    after: Annotated[int | None, Query(ge=0, le=LARGEST_ID, description="replay events with a larger id")] = None,
    last_event_id: Annotated[str | None, Header(description="sent by browsers when they connect again")] = None,
) -> int:
    if last_event_id:
        if not (last_event_id.isdecimal() and len(last_event_id) <= 10 and int(last_event_id) <= LARGEST_ID):
            raise invalid("Last-Event-ID", f"must be the id of an event, not {last_event_id[:80]!r}")
        return int(last_event_id)
    return after or 0


AfterEvent = Annotated[int, Depends(_after)]


def event_stream(database: Database, topic: Topic, after: int) -> EventSourceResponse:
    """All events beyond ``after``, then those that come, until the topic ends with the event ``end``."""
    return EventSourceResponse(
        _follow(database, topic, after),
        ping=PING_S,
        sep="\n",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _follow(database: Database, topic: Topic, after: int) -> AsyncIterator[ServerSentEvent]:
    seen: set[int] = set()
    newest = after
    while True:
        # the end first: events that belong to it are committed with it, so the poll below finds them
        final = await to_thread.run_sync(topic.ended) if topic.ended else None
        while True:
            floor = max(after, newest - _LOOK_BACK)
            events = await to_thread.run_sync(_poll, database, topic, floor)
            fresh = [event for event in events if event.id not in seen]
            for event in fresh:
                yield ServerSentEvent(to_json(event), event=event.kind, id=str(event.id))
            newest = max([newest, *(event.id for event in fresh)])
            seen = {id_ for id_ in seen | {event.id for event in fresh} if id_ > newest - _LOOK_BACK}
            if len(events) < _BATCH:
                break
        if final is not None:
            yield ServerSentEvent(to_json(final), event="end")
            return
        await anyio.sleep(POLL_S)


def _poll(database: Database, topic: Topic, after: int) -> list[JobEvent]:
    with database.read() as session:
        return list(events_after(session, after, job_id=topic.job_id, study_id=topic.study_id, limit=_BATCH))
