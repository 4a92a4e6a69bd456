"""Server-sent events from job_events: replay by id, then follow.

A database session is held for one poll only, never across an await: a client that reads slowly holds a socket and
nothing else. A stream ends by itself after ten minutes with the event ``reconnect``: clients come back with
``Last-Event-ID``, so that a load balancer or a new server gets its share of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any

import anyio
from anyio import to_thread
from fastapi import Depends, Header, Query, Request
from sqlalchemy import func, select
from sse_starlette import EventSourceResponse, ServerSentEvent

from results_db import Database
from results_db.queue.events import events_after
from results_db.tables import JobEvent
from server.kit.answers import to_json
from server.kit.pagination import LARGEST_ID
from server.kit.problem import Problem, invalid

POLL_S = 0.3
PING_S = 15
#: then the stream ends and the client opens it again
LIFETIME_S = 600.0
#: that one server holds at once; each asks the database every POLL_S
MOST_STREAMS = 100
#: ids are handed out before they are committed: on PostgreSQL a lower one can appear after a higher one, so the last
#: few are looked at again: more than one transaction writes while others commit. SQLite's writers are alone
_LOOK_BACK = 256
#: larger than the look back, or a poll would never come beyond it
_BATCH = 500
#: longer than any transaction that writes an event
_LATE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Topic:
    """What a stream is about."""

    job_id: str | None = None
    study_id: str | None = None
    #: the final state of what the stream follows, or None while it goes on; asked before each poll
    ended: Callable[[], Any] | None = None


@dataclass(frozen=True, slots=True)
class Since:
    """Where a stream begins."""

    id: int
    #: a stream that broke goes on: what was committed late, with a smaller id, has not been sent yet
    resumed: bool


def _after(
    after: Annotated[int | None, Query(ge=0, le=LARGEST_ID, description="replay events with a larger id")] = None,
    last_event_id: Annotated[str | None, Header(description="sent by browsers when they connect again")] = None,
) -> Since:
    if last_event_id:
        if not (last_event_id.isdecimal() and len(last_event_id) <= 10 and int(last_event_id) <= LARGEST_ID):
            raise invalid("Last-Event-ID", f"must be the id of an event, not {last_event_id[:80]!r}")
        return Since(int(last_event_id), resumed=True)
    return Since(after or 0, resumed=False)


AfterEvent = Annotated[Since, Depends(_after)]


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


def event_stream(database: Database, streams: OpenStreams, topic: Topic, since: Since) -> EventSourceResponse:
    """All events since then, and those that come, until the topic ends with the event ``end``.

    A stream that goes on may repeat some of the last events: on PostgreSQL one that was committed late, below the last
    id, would be missed otherwise. Their ids tell.

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
        streams.counted(_follow(database, topic, since)),
        ping=PING_S,
        sep="\n",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _follow(database: Database, topic: Topic, since: Since) -> AsyncIterator[ServerSentEvent]:
    over_at = anyio.current_time() + LIFETIME_S
    seen: set[int] = set()
    # an id that does not exist yet comes from another database, or from before a restore: go on from here
    after = min(since.id, await to_thread.run_sync(_newest, database))
    newest = after
    look_back = 0 if database.is_sqlite else _LOOK_BACK
    if since.resumed and not database.is_sqlite:
        for event in await to_thread.run_sync(_perhaps_late, database, topic, after):
            seen.add(event.id)
            yield ServerSentEvent(to_json(event), event=event.kind, id=str(event.id))
    while True:
        # the end first: events that belong to it are committed with it, so the poll below finds them
        final = await to_thread.run_sync(topic.ended) if topic.ended else None
        while True:
            floor = max(after, newest - look_back)
            events = await to_thread.run_sync(_poll, database, topic, floor)
            fresh = [event for event in events if event.id not in seen]
            for event in fresh:
                yield ServerSentEvent(to_json(event), event=event.kind, id=str(event.id))
            newest = max([newest, *(event.id for event in fresh)])
            seen = {id_ for id_ in seen | {event.id for event in fresh} if id_ > newest - look_back}
            if len(events) < _BATCH:
                break
        if final is not None:
            yield ServerSentEvent(to_json(final), event="end")
            return
        if anyio.current_time() >= over_at:
            yield ServerSentEvent("{}", event="reconnect")
            return
        await anyio.sleep(POLL_S)


def _perhaps_late(database: Database, topic: Topic, last: int) -> list[JobEvent]:
    """Events below the last one that may have been committed after it: made at nearly the same time."""
    with database.read() as session:
        seen = session.get(JobEvent, last)
        events = events_after(
            session, max(0, last - _LOOK_BACK), job_id=topic.job_id, study_id=topic.study_id, limit=_LOOK_BACK
        )
        since = None if seen is None else seen.created_at - _LATE
        return [event for event in events if event.id < last and (since is None or event.created_at >= since)]


def _newest(database: Database) -> int:
    with database.read() as session:
        return session.scalar(select(func.max(JobEvent.id))) or 0


def _poll(database: Database, topic: Topic, after: int) -> list[JobEvent]:
    with database.read() as session:
        return list(events_after(session, after, job_id=topic.job_id, study_id=topic.study_id, limit=_BATCH))
