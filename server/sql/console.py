"""The console: a few queries at a time, each within the server's limits, ended when nobody waits for it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

import anyio
from anyio import to_thread
from fastapi import Request
from sqlalchemy import URL

from results_db.sql.result import Limits, QueryRefused, Refusal, Result
from results_db.sql.run import run_query
from results_db.sql.stop import Stop
from server.kit.problem import Problem
from server.sql.schemas import QueryLimits

AT_ONCE = 2
MOST_ROWS = 10_000
MOST_BYTES = 5_000_000


class Console:
    """Queries of all requests to one server.

    Args:
        url: of the database.
        seconds: that a query may take.
    """

    def __init__(self, url: URL, seconds: float) -> None:
        self._url = url
        self._seconds = seconds
        self._slots = threading.BoundedSemaphore(AT_ONCE)

    def limits(self, asked: QueryLimits) -> Limits:
        """What was asked for, within what the server allows."""
        seconds = self._seconds if asked.seconds is None else min(asked.seconds, self._seconds)
        return Limits(rows=min(asked.rows, MOST_ROWS), nbytes=min(asked.bytes, MOST_BYTES), seconds=seconds)

    async def ask(self, request: Request, sql: str, params: Mapping[str, Any], limits: Limits) -> Result:
        """Run one SELECT on the views; a client that goes away ends it.

        Raises:
            Problem: sql-busy, or why the query was refused.
        """
        if not self._slots.acquire(blocking=False):
            raise _busy(f"{AT_ONCE} queries run, which is as many as may")
        try:
            outcome = await self._run(request, partial(run_query, self._url, sql, limits, params=params))
        finally:
            self._slots.release()
        if isinstance(outcome, QueryRefused):
            raise problem_of(outcome) from outcome
        return outcome

    async def _run(self, request: Request, query: Any) -> Result | QueryRefused:
        stop = Stop()
        outcome: Result | QueryRefused
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_stop_when_gone, request, stop)
            try:
                # not abandoned when the request is cancelled: its slot is free when it has ended
                outcome = await to_thread.run_sync(partial(query, stop=stop))
            except QueryRefused as error:
                outcome = error
            tasks.cancel_scope.cancel()
        return outcome


async def _stop_when_gone(request: Request, stop: Stop) -> None:
    # the body is read: what comes next is the end of the connection
    while (await request.receive())["type"] != "http.disconnect":
        pass
    stop.request()


def _busy(detail: str) -> Problem:
    return Problem(
        429, "sql-busy", f"{detail}: send this one again in a moment", headers={"Retry-After": "1"}, retryable=True
    )


def problem_of(error: QueryRefused) -> Problem:
    """The refusal as the API tells it."""
    detail = f"{error}: {error.cure}" if error.cure else str(error)
    match error.why:
        case Refusal.NOT_ALLOWED:
            return Problem(422, "sql-not-allowed", detail)
        case Refusal.INVALID:
            return Problem(422, "sql-invalid", detail)
        case Refusal.TIMEOUT:
            return Problem(422, "sql-timeout", detail)
        case Refusal.TOO_LARGE:
            return Problem(422, "sql-too-large", detail)
        case Refusal.BUSY:
            return _busy(str(error))
        case Refusal.STOPPED | Refusal.UNAVAILABLE:
            return Problem(503, "sql-unavailable", detail)
