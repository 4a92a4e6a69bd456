"""BodyCheck: how large a request's body may be, how long it may take, and what it may call itself."""

from __future__ import annotations

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.kit.problem import Problem

_WITHIN_S = 60.0
YAML_TYPES = frozenset({"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"})
#: a browser's form sends none of these, so no page of another site can without asking us first
_TYPES = YAML_TYPES | {"application/json"}


class BodyCheck:
    """ASGI middleware: reads the body, up to the limit, before the application is called.

    Every body here is one JSON or YAML document that is held in memory as a whole anyway. What says beforehand that it
    is too large is refused unread; what says nothing (chunked) is refused at the first byte beyond.

    Args:
        max_bytes: of a body.
        within_s: seconds that a body may take to arrive; whoever sends slower holds a connection for nothing.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, *, within_s: float = _WITHIN_S) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.within_s = within_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(headers := Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        try:
            self._check_length(headers)
            body = await self._read(receive)
            if body and scope["path"].startswith("/api/"):
                _check_type(headers)
        except Problem as problem:
            await problem.response()(scope, receive, send)
            return
        if body is None:
            return  # the client is gone
        await self.app(scope, _replay(body, receive), send)

    def _check_length(self, headers: Headers) -> None:
        said = headers.get("content-length", "0")
        if not (said.isascii() and said.isdigit()):
            raise Problem(400, "malformed-body", "Content-Length is no number", headers={"Connection": "close"})
        if len(said) > 18 or int(said) > self.max_bytes:
            raise self._too_large()

    async def _read(self, receive: Receive) -> bytes | None:
        chunks: list[bytes] = []
        n_bytes = 0
        try:
            with anyio.fail_after(self.within_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    chunk = message.get("body", b"")
                    n_bytes += len(chunk)
                    if n_bytes > self.max_bytes:
                        raise self._too_large()
                    chunks.append(chunk)
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            raise Problem(
                408,
                "body-timeout",
                f"the body did not arrive within {self.within_s:g} s: send it again over a faster line",
                headers={"Connection": "close"},
            ) from None

    def _too_large(self) -> Problem:
        # closed: what still comes of the body would be taken for the next request
        return Problem(
            413,
            "too-large",
            f"a request has at most {self.max_bytes:,} bytes (BITBUDGET_MAX_BODY_MB)",
            headers={"Connection": "close"},
            max_bytes=self.max_bytes,
        )


def _has_body(headers: Headers) -> bool:
    return "content-length" in headers or "transfer-encoding" in headers


def _check_type(headers: Headers) -> None:
    sent = headers.getlist("content-type")
    name = sent[0].partition(";")[0].strip().lower() if len(sent) == 1 else ""
    if name in _TYPES or (name.startswith("application/") and name.endswith("+json")):
        return
    given = f"Content-Type {name} is" if name else "a body without one Content-Type is"
    raise Problem(
        415, "unsupported-media-type", f"{given} not read here: send application/json, a study also as application/yaml"
    )


def _replay(body: bytes, receive: Receive) -> Receive:
    """What the application receives: the body at once, then whatever comes."""
    is_told = False

    async def tell() -> Message:
        nonlocal is_told
        if is_told:
            return await receive()
        is_told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return tell
