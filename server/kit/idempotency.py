"""Idempotency-Key: the same POST sent twice is done once, also when both are on their way at the same moment.

A key belongs to whoever sent it (a token; without tokens, this machine) and to the path; it is kept for 24 hours.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

from anyio import to_thread
from fastapi import Request
from fastapi.routing import APIRoute
from sqlalchemy import delete, select
from sqlalchemy.orm import Session
from starlette.responses import Response

from results_db import Database
from results_db.clock import utc_now
from results_db.ids import new_id
from results_db.tables import IdempotencyKey
from server.kit.answers import Answer, Answered
from server.kit.problem import Problem, invalid
from server.security.principal import principal_of

HEADER = "Idempotency-Key"
KEPT_FOR = timedelta(hours=24)
_KEPT_HEADERS = ("location",)
#: of this process; so often keys that are past their time are removed
_CLEAN_EVERY_S = 600.0


class IdempotentRoute(APIRoute):
    """A route whose POST honours Idempotency-Key.

    The answer is stored in the request's own transaction, so that it exists exactly if what it tells of exists. Only
    successes are kept: a refused request may be corrected and sent again under its key. Of two that come at once the
    one that commits second is rolled back, and gets the answer of the first.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            given = request.headers.get(HEADER)
            if request.method != "POST" or given is None:
                return await handle(request)
            if not 1 <= len(given) <= 255:
                raise invalid(HEADER, "1 to 255 characters")
            body = await request.body()
            key = _Key(
                given,
                # no token's id begins with a slash, so nobody can spell another's key
                f"{_sender(request)}/{given}",
                request.url.path,
                hashlib.sha256(request.url.query.encode() + b"\n" + body).hexdigest(),
            )
            database: Database = request.app.state.database
            await to_thread.run_sync(_clean, request.app.state, database)
            if (stored := await to_thread.run_sync(key.find, database)) is not None:
                return key.replay(stored)
            try:
                response = await handle(request)
                session = getattr(request.state, "write_session", None)
                if session is not None and response.status_code < 300:
                    await to_thread.run_sync(key.keep, session, response)
            except Exception as error:
                # the same request, done by another at the same moment, may be what stood in the way
                if (stored := await to_thread.run_sync(key.find, database)) is None:
                    raise
                raise Answered(key.replay(stored)) from error
            return response

        return handler


class _Key:
    """One key with what it was sent for."""

    def __init__(self, given: str, stored_as: str, path: str, request_hash: str) -> None:
        self.given = given
        self.stored_as = stored_as
        self.path = path
        self.request_hash = request_hash

    def find(self, database: Database) -> IdempotencyKey | None:
        """The answer that is stored, unless its time is over."""
        with database.read() as session:
            found = session.scalar(
                select(IdempotencyKey).where(IdempotencyKey.key == self.stored_as, IdempotencyKey.path == self.path)
            )
        if found is None or found.created_at > utc_now() - KEPT_FOR:
            return found
        with database.write() as session:
            session.execute(delete(IdempotencyKey).where(IdempotencyKey.id == found.id))
        return None

    def keep(self, session: Session, response: Response) -> None:
        """Store the answer in the request's transaction; waits for one that is storing the same key.

        Raises:
            IntegrityError: the other one was first.
        """
        kept = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
        session.add(
            IdempotencyKey(
                id=new_id("idem"),
                key=self.stored_as,
                path=self.path,
                request_hash=self.request_hash,
                status=response.status_code,
                headers=kept,
                response=json.loads(bytes(response.body)) if response.body else None,
            )
        )
        session.flush()

    def replay(self, stored: IdempotencyKey) -> Response:
        """The stored answer.

        Raises:
            Problem: idempotency-key-reused.
        """
        if stored.request_hash != self.request_hash:
            raise Problem(
                422,
                "idempotency-key-reused",
                f"{HEADER} {self.given!r} was used for another request to {self.path}: choose a new key",
            )
        headers = stored.headers | {"Idempotency-Replayed": "true"}
        return Answer(stored.response, status_code=stored.status, headers=headers)


def _sender(request: Request) -> str:
    principal = principal_of(request)
    return (principal.token_id or "") if principal is not None else ""


def _clean(state: Any, database: Database) -> None:
    """Remove keys past their time, now and then."""
    if time.monotonic() < getattr(state, "idempotency_clean_at", 0.0):
        return
    state.idempotency_clean_at = time.monotonic() + _CLEAN_EVERY_S
    with database.write() as session:
        session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < utc_now() - KEPT_FOR))
