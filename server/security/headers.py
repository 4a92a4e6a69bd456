"""SecurityHeaders: what every response says to browsers, whoever made it."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from web.security import EVERY_RESPONSE, content_security_policy


class SecurityHeaders:
    """ASGI middleware, outside of everything: errors that nobody expected get the headers as well.

    A response keeps what it says itself, but for the policies, which are the same everywhere.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(EVERY_RESPONSE)
                headers["Content-Security-Policy"] = content_security_policy(headers.get("content-type", ""))
                # measurements are nobody's but the caller's: no cache between keeps them
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, answer)
