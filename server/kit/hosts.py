"""Who may ask: the Host header against DNS rebinding, Sec-Fetch-Site and Origin against other sites' pages."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.kit.problem import Problem

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def host_of(header: str) -> str | None:
    """The name or IP in a Host header, lower case, without port; None where it is malformed."""
    if not header or any(c in header for c in "/@?#\\ \t"):
        return None
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port
    except ValueError:
        return None
    return parts.hostname.rstrip(".").lower() if parts.hostname else None


def is_loopback(host: str) -> bool:
    """Whether the name or IP can only mean this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class HostCheck:
    """ASGI middleware: refuses foreign Host headers, and unsafe requests that another site's page sent."""

    def __init__(self, app: ASGIApp, allowed: tuple[str, ...]) -> None:
        self.app = app
        self.allowed = frozenset(name.lower() for name in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        problem = self._check(scope["method"], Headers(scope=scope))
        if problem is None:
            await self.app(scope, receive, send)
        else:
            await problem.response()(scope, receive, send)

    def _check(self, method: str, headers: Headers) -> Problem | None:
        hosts = headers.getlist("host")
        host = host_of(hosts[0]) if len(hosts) == 1 else None
        if host is None:
            return Problem(400, "host-not-allowed", "the Host header is missing or malformed")
        if not is_loopback(host) and host not in self.allowed:
            return Problem(
                403, "host-not-allowed", f"this server does not answer to {host}: add it to BITBUDGET_ALLOWED_HOSTS"
            )
        if method in _SAFE:
            return None
        site = headers.get("sec-fetch-site")
        if site is not None:
            return None if site == "same-origin" else _cross_site(f"Sec-Fetch-Site is {site}")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != hosts[0].lower():
            return _cross_site(f"its origin is {origin}")
        return None


def _cross_site(why: str) -> Problem:
    return Problem(403, "cross-site-request", f"a page of another site may not change anything here ({why})")
