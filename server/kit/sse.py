"""Server-sent events from job_events: replay by id, then follow.

A database session is held for one poll only, never across an await: a client that reads slowly holds a socket and
nothing else. A stream ends by itself after ten minutes with the event ``reconnect``: clients come back with
``Last-Event-ID``, so that a load balancer or a new server gets its share of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, TypeVar

import anyio
from anyio import to_thread
from fastapi import Depends, Header, Query, Request
from sqlalchemy.orm import Session
from sse_starlette import EventSourceResponse, ServerSentEvent

from results_db import Database
from results_db.queue.events import events_after, newest_event, settled_event
from results_db.tables import JobEvent
from server.kit.answers import to_json
from server.kit.pagination import LARGEST_ID
from server.kit.problem import Problem, invalid

Answered = TypeVar("Answered")

POLL_S = 0.3
PING_S = 15
#: then the stream ends and the client opens it again
LIFETIME_S = 600.0
#: that one server holds at once; each asks the database every POLL_S
MOST_STREAMS = 100
_BATCH = 500


@dataclass(frozen=True, slots=True)
class Topic:
    """What a stream is about."""

    job_id: str | None = None
    study_id: str | None = None
    #: the final state of what the stream follows, or None while it goes on; asked before each poll
    ended: Callable[[], Any] | None = None

    def events(self, after: int, up_to: int) -> Callable[[Session], Sequence[JobEvent]]:
        """How to read the next batch of them."""
        return partial(events_after, after=after, up_to=up_to, job_id=self.job_id, study_id=self.study_id, limit=_BATCH)


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


@dataclass(slots=True)
class OpenStreams:
    """How many streams this server holds. Asked and changed on the event loop alone."""

    most: int = MOST_STREAMS
    open: int = field(default=0, init=False)

    async def counted(self, events: AsyncIterator[ServerSentEvent]) -> AsyncIterator[ServerSentEvent]:
        """The same events; the stream counts as open from the first to the last."""
        self.open += 1
        try:
            async for event in events:
                yield event
        finally:
            self.open -= 1


def _open_streams(request: Request) -> OpenStreams:
    streams: OpenStreams = request.app.state.open_streams
    return streams


Streams = Annotated[OpenStreams, Depends(_open_streams)]


def event_stream(database: Database, streams: OpenStreams, topic: Topic, after: int) -> EventSourceResponse:
    """All events with a larger id, and those that come, each once and in order, until the topic ends with the event
    ``end``.

    Raises:
        Problem: too-many-streams.
    """
    if streams.open >= streams.most:
        raise Problem(
            503,
            "too-many-streams",
            f"{streams.open} event streams are open, more than this server holds: close some, or ask the lists instead",
            headers={"Retry-After": "10"},
            retryable=True,
        )
    return EventSourceResponse(
        streams.counted(_follow(database, topic, after)),
        ping=PING_S,
        sep="\n",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _follow(database: Database, topic: Topic, after: int) -> AsyncIterator[ServerSentEvent]:
    over_at = anyio.current_time() + LIFETIME_S
    if after > await to_thread.run_sync(_read, database, newest_event):
        # an id that does not exist yet comes from another database, or from before a restore: go on from here
        after = await to_thread.run_sync(_read, database, settled_event)
    while True:
        final = await to_thread.run_sync(topic.ended) if topic.ended else None
        # events that belong to the end were committed with it; a slower transaction may still hold them back
        last = 0 if final is None else await to_thread.run_sync(_read, database, newest_event)
        settled = await to_thread.run_sync(_read, database, settled_event)
        while True:
            events = await to_thread.run_sync(_read, database, topic.events(after, settled))
            for event in events:
                yield ServerSentEvent(to_json(event), event=event.kind, id=str(event.id))
            if len(events) < _BATCH:
                break
            after = events[-1].id
        after = max(after, settled)
        if final is not None and settled >= last:
            yield ServerSentEvent(to_json(final), event="end")
            return
        if anyio.current_time() >= over_at:
            yield ServerSentEvent("{}", event="reconnect")
            return
        await anyio.sleep(POLL_S)


def _read(database: Database, ask: Callable[[Session], Answered]) -> Answered:
    with database.read() as session:
        return ask(session)
