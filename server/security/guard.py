"""Guard: the one place where a request is let in or turned away. It stands before every route, known or not."""

from __future__ import annotations

import logging
from urllib.parse import quote

import anyio
from anyio import to_thread
from sqlalchemy.exc import DBAPIError
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from results_db import Database
from results_db.clock import utc_now
from results_db.settings import Settings
from results_db.tokens import USED_WITHIN, note_use
from server.kit.problem import Problem
from server.security.credentials import Lookup, bearer, local, page_session, token_invalid, token_missing
from server.security.principal import LOCAL, Principal, set_principal
from server.security.scopes import needed_scope

log = logging.getLogger(__name__)

#: public paths that show more to those who are let in; for the others nobody is looked up
_KNOWS_ITS_GUEST = ("/readyz", "/login")
#: so often a stream asks whether its token still works
_ASK_AGAIN_S = 15.0


class Guard:
    """ASGI middleware: finds the principal, holds it against the scope that the route needs, and says no as a problem.

    A browser that opens a page is sent to /login instead. An event stream ends within seconds of its token.
    """

    def __init__(self, app: ASGIApp, database: Database, settings: Settings, *, ask_again_s: float = _ASK_AGAIN_S):
        self.app = app
        self.database = database
        self.settings = settings
        self.ask_again_s = ask_again_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":  # there are none: were there one, it would be unguarded
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        needed = needed_scope(scope["method"], scope["path"])
        principal: Principal | None = None
        lookup: Lookup | None = None
        if needed is None:
            if scope["path"].endswith(_KNOWS_ITS_GUEST):
                principal = await self._guest(scope, headers)
        else:
            try:
                lookup = bearer(headers) or page_session(scope, headers)
                principal = await self._find(lookup, scope, headers)
                if principal is None:
                    raise token_missing()
                if not principal.scope.includes(needed):
                    raise _scope_missing(principal, needed)
            except Problem as problem:
                await _refuse(problem, scope, headers)(scope, receive, send)
                return
        set_principal(scope, principal)
        # what is let in since it comes from this machine does not end with a cookie that has ended before
        if lookup is not None and principal is not LOCAL and scope["path"].endswith("/events"):
            await self._stream(lookup, scope, receive, send)
        else:
            await self.app(scope, receive, send)
        if principal is not None and principal.token_id is not None:
            await to_thread.run_sync(self._note_use, principal)

    async def _find(self, lookup: Lookup | None, scope: Scope, headers: Headers) -> Principal | None:
        """
        Raises:
            Problem: token-invalid, or database-unavailable.
        """
        if lookup is None:
            return local(scope, headers, self.settings)
        try:
            found = await to_thread.run_sync(lookup, self.database)
        except DBAPIError as error:
            log.error("the database refused to say whose token it is: %s", error.orig)
            raise Problem(
                503,
                "database-unavailable",
                "the database is locked or away, so nobody can be let in: send the request again in a moment",
                headers={"Retry-After": "2"},
                retryable=True,
            ) from error
        if found is None and "authorization" in headers:
            raise token_invalid()
        # a cookie that has ended is as good as none
        return found or local(scope, headers, self.settings)

    async def _guest(self, scope: Scope, headers: Headers) -> Principal | None:
        """Who asks for a public path, as far as that can be told."""
        try:
            lookup = bearer(headers) or page_session(scope, headers)
            return await self._find(lookup, scope, headers)
        except Problem:
            # what is public is answered to those as well who fail to say who they are
            return None

    async def _stream(self, lookup: Lookup, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer until the end, or until the credential has ended: then the client is told that the stream is over."""
        has_ended = False

        async def receive_or_end() -> Message:
            nonlocal has_ended
            message: Message = {"type": "http.disconnect"}
            async with anyio.create_task_group() as group:

                async def listen() -> None:
                    nonlocal message
                    message = await receive()
                    group.cancel_scope.cancel()

                group.start_soon(listen)
                while not has_ended:
                    await anyio.sleep(self.ask_again_s)
                    has_ended = not await self._still_works(lookup)
                group.cancel_scope.cancel()
            return message

        await self.app(scope, receive_or_end, send)
        if has_ended:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _still_works(self, lookup: Lookup) -> bool:
        try:
            return await to_thread.run_sync(lookup, self.database) is not None
        except DBAPIError as error:
            log.warning("whether a stream's token still works is asked again later: %s", error.orig)
            return True

    def _note_use(self, principal: Principal) -> None:
        """Keep when the token was used; the request is answered already, so a database that is away costs a line."""
        assert principal.token_id is not None
        if principal.used_at is not None and utc_now() - principal.used_at < USED_WITHIN:
            return
        try:
            with self.database.write() as session:
                note_use(session, principal.token_id)
        except DBAPIError as error:
            log.warning("the use of token %s is not noted: %s", principal.name, error.orig)


def _scope_missing(principal: Principal, needed: str) -> Problem:
    return Problem(
        403,
        "scope-missing",
        f"this needs a token of the scope {needed}, and {principal.name!r} has {principal.scope}: "
        f"`bitbudget tokens create NAME --scope {needed}` makes one",
        headers={"WWW-Authenticate": f'Bearer realm="bitbudget", error="insufficient_scope", scope="{needed}"'},
        needed=str(needed),
    )


def _refuse(problem: Problem, scope: Scope, headers: Headers) -> Response:
    """The problem, or for a browser that opens a page the way to /login."""
    opens_a_page = scope["method"] == "GET" and headers.get("sec-fetch-mode", "navigate") == "navigate"
    wants_html = "text/html" in headers.get("accept", "") and not scope["path"].startswith("/api/")
    if problem.status != 401 or not (opens_a_page and wants_html):
        return problem.response()
    query = scope.get("query_string", b"").decode("latin-1")
    asked = quote(scope["path"]) + (f"?{query}" if query else "")
    return RedirectResponse(
        f"/login?next={quote(asked, safe='')}", status_code=303, headers={"Cache-Control": "no-store"}
    )
