"""Who may ask: the Host header against DNS rebinding, Sec-Fetch-Site and Origin against other sites' pages."""

from __future__ import annotations

import re
from ipaddress import IPv6Address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from results_db.loopback import is_every_interface, is_loopback
from server.kit.problem import Problem

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
#: a name, an IPv4 address or an IPv6 address in brackets, and a port: nothing else is a Host
_HOST = re.compile(
    rf"(?:(?P<name>{_LABEL}(?:\.{_LABEL})*)\.?|\[(?P<ipv6>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{{1,5}}))?"
)
_LONGEST_NAME = 253


def host_of(header: str) -> str | None:
    """The name or IP in a Host header, lower case, without port and final dot; None where it is malformed."""
    match = _HOST.fullmatch(header)
    if match is None or len(match["name"] or "") > _LONGEST_NAME or int(match["port"] or 0) > 65535:
        return None
    if match["ipv6"] is None:
        return match["name"].lower()
    try:
        return str(IPv6Address(match["ipv6"]))
    except ValueError:
        return None


def is_own_origin(origin: str, host_header: str) -> bool:
    """Whether an Origin header is this server's own, as the same request's Host header names it."""
    return origin.lower() in (f"http://{host_header}".lower(), f"https://{host_header}".lower())


class HostCheck:
    """ASGI middleware: refuses foreign Host headers, unsafe requests that another site's page sent, and requests that
    end in two places."""

    def __init__(self, app: ASGIApp, allowed: tuple[str, ...]) -> None:
        self.app = app
        # an address to listen on is none to be asked by: pages of other sites reach 0.0.0.0
        self.allowed = frozenset(_canonical(name) for name in allowed if not is_every_interface(name))

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
        if "transfer-encoding" in headers and "content-length" in headers:
            # a proxy that believes the other one takes the rest of the body for a request of somebody else
            return Problem(
                400,
                "malformed-body",
                "Transfer-Encoding and Content-Length tell two lengths of one body: send one of them",
                headers={"Connection": "close"},
            )
        hosts = headers.getlist("host")
        host = host_of(hosts[0]) if len(hosts) == 1 else None
        if host is None:
            return Problem(400, "host-not-allowed", "the Host header is missing or malformed")
        if not is_loopback(host) and host not in self.allowed:
            return Problem(
                403, "host-not-allowed", f"this server does not answer to {host}: add it to BITBUDGET_ALLOWED_HOSTS"
            )
        if method in SAFE_METHODS:
            return None
        site = headers.get("sec-fetch-site")
        if site is not None:
            return None if site == "same-origin" else _cross_site(f"Sec-Fetch-Site is {site}")
        origin = headers.get("origin")
        if origin is not None and not is_own_origin(origin, hosts[0]):
            return _cross_site(f"its origin is {origin}")
        return None


def _canonical(name: str) -> str:
    """A configured host as ``host_of`` writes it."""
    return host_of(f"[{name}]" if ":" in name and not name.startswith("[") else name) or name.lower()


def _cross_site(why: str) -> Problem:
    return Problem(403, "cross-site-request", f"a page of another site may not change anything here ({why})")
