"""Idempotency-Key: the same POST sent twice is done once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Coroutine
from typing import Any

from anyio import to_thread
from fastapi import Request
from fastapi.routing import APIRoute
from sqlalchemy import select
from starlette.responses import Response

from results_db import Database
from results_db.ids import new_id
from results_db.tables import IdempotencyKey
from server.kit.answers import Answer
from server.kit.problem import Problem, invalid

HEADER = "Idempotency-Key"
_KEPT_HEADERS = ("location",)


class IdempotentRoute(APIRoute):
    """A route whose POST honours Idempotency-Key.

    The answer is stored in the request's own transaction, so that it exists exactly if what it tells of exists. Only
    successes are kept: a refused request may be corrected and sent again under its key.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            key = request.headers.get(HEADER)
            if request.method != "POST" or key is None:
                return await handle(request)
            if not 1 <= len(key) <= 255:
                raise invalid(HEADER, "1 to 255 characters")
            body = await request.body()
            request_hash = hashlib.sha256(request.url.query.encode() + b"\n" + body).hexdigest()
            stored = await to_thread.run_sync(_find, request.app.state.database, key, request.url.path)
            if stored is not None:
                return _replay(stored, request_hash)
            response = await handle(request)
            session = getattr(request.state, "write_session", None)
            if session is not None and response.status_code < 300:
                kept = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
                session.add(
                    IdempotencyKey(
                        id=new_id("idem"),
                        key=key,
                        path=request.url.path,
                        request_hash=request_hash,
                        status=response.status_code,
                        headers=kept,
                        response=json.loads(bytes(response.body)) if response.body else None,
                    )
                )
            return response

        return handler


def _find(database: Database, key: str, path: str) -> IdempotencyKey | None:
    with database.read() as session:
        return session.scalar(select(IdempotencyKey).where(IdempotencyKey.key == key, IdempotencyKey.path == path))


def _replay(stored: IdempotencyKey, request_hash: str) -> Response:
    if stored.request_hash != request_hash:
        raise Problem(
            422,
            "idempotency-key-reused",
            f"{HEADER} {stored.key!r} was used for another request to {stored.path}: choose a new key",
        )
    return Answer(stored.response, status_code=stored.status, headers=stored.headers | {"Idempotency-Replayed": "true"})
