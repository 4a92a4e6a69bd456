"""A trace id for every request, and one line about it when it is answered."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from results_db.logs import bind_for_good, new_trace, trace_from

log = logging.getLogger("server.access")

HEADER = "X-Trace-Id"
#: asked every few seconds by machines: told only to those who listen closely
_QUIET = ("/livez", "/readyz", "/metrics")


class Tracing:
    """ASGI middleware, the outermost: binds the trace id to every log line of the request and answers it.

    The caller's own id is kept where its ``traceparent`` or ``X-Trace-Id`` is well-formed.

    Args:
        answered: told of each request when it is over: method, template of its route, status, seconds.
        prefix: of the API's routes, which their templates leave out.
    """

    def __init__(self, app: ASGIApp, answered: Callable[[str, str, int, float], None], prefix: str) -> None:
        self.app = app
        self.answered = answered
        self.prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        trace_id = trace_from(headers.get("traceparent"), headers.get(HEADER)) or new_trace()
        # for good: the handler of unexpected errors stands outside of this middleware and is to know the id as well;
        # every request has a task, and so a context, of its own
        bind_for_good(trace_id=trace_id)
        began = time.perf_counter()
        status = 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = trace_id
            await send(message)

        try:
            await self.app(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - began
            # without the query: it may hold what nobody should read
            path = scope["path"]
            level = logging.DEBUG if path.endswith(_QUIET) and status < 500 else logging.INFO
            fields = {"method": scope["method"], "path": path, "status": status, "seconds": round(seconds, 4)}
            self.answered(scope["method"], self._template(scope), status, seconds)
            log.log(level, "%s %s %d", scope["method"], path, status, extra=fields)

    def _template(self, scope: Scope) -> str:
        """The path of the route that answered, with names where the request has ids."""
        if "route" not in scope:
            return "none"
        return (self.prefix if scope["path"].startswith(f"{self.prefix}/") else "") + str(scope["route"].path)
