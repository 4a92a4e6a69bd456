"""From a request's headers to its principal: a token, a cookie, or the mere fact that it comes from this machine."""

from __future__ import annotations

import re
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import Scope as AsgiScope

from results_db import Database
from results_db.loopback import is_loopback
from results_db.page_sessions import find_session
from results_db.settings import Settings
from results_db.tokens import find_token
from server.kit.hosts import SAFE_METHODS, host_of, is_own_origin
from server.kit.problem import Problem
from server.security.principal import LOCAL, Principal

COOKIE = "bitbudget_session"
#: the prefix makes browsers refuse a cookie of this name that is not Secure, or that a sibling domain set
SECURE_COOKIE = f"__Host-{COOKIE}"

_TOKEN = re.compile(r"bb_[A-Za-z0-9_-]{43}")
_COOKIE_VALUE = re.compile(r"[A-Za-z0-9_-]{43}")
#: whoever sends one of these is, or passed, a proxy
_FORWARDING = (
    *("forwarded", "via", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "x-original-host", "x-original-url"),
    *("true-client-ip", "cf-connecting-ip", "fastly-client-ip", "x-envoy-external-address", "x-proxyuser-ip"),
)
_CHALLENGE = 'Bearer realm="bitbudget"'

#: asks the database who it is; None = whoever it was is no longer let in
Lookup = Callable[[Database], Principal | None]


def token_missing() -> Problem:
    """401 for whoever sent nothing."""
    return Problem(
        401,
        "token-missing",
        "this server asks for a token: send it as `Authorization: Bearer bb_…` (the command line takes BITBUDGET_TOKEN "
        "or --token-file), or open /login in a browser. `bitbudget tokens create NAME --scope read`, run where the "
        "database is, makes one",
        headers={"WWW-Authenticate": _CHALLENGE},
    )


def token_invalid(why: str = "it is unknown, expired or revoked") -> Problem:
    """401 for whoever sent something that lets nobody in; which of the reasons it is stays untold."""
    return Problem(
        401,
        "token-invalid",
        f"the token lets nobody in ({why}): `bitbudget tokens list` shows those that do, `bitbudget tokens create` "
        "makes another",
        headers={"WWW-Authenticate": f'{_CHALLENGE}, error="invalid_token"'},
    )


def local(scope: AsgiScope, headers: Headers, settings: Settings) -> Principal | None:
    """The principal of a request without any credential that counts as this machine's own.

    Headers that proxies add can only make the answer no: never is one believed to make it yes.
    """
    if settings.needs_token or any(name in _FORWARDING or name.startswith("x-forwarded-") for name in headers):
        return None
    peer = scope.get("client")
    host = host_of(headers.get("host", ""))
    is_here = peer is not None and is_loopback(peer[0]) and host is not None and is_loopback(host)
    return LOCAL if is_here else None


def is_https(scope: AsgiScope, headers: Headers) -> bool:
    """Whether the browser's line is encrypted. A proxy is believed here: it can only make the cookie stricter."""
    return scope.get("scheme") == "https" or headers.get("x-forwarded-proto", "").lower() == "https"


def cookie_name(scope: AsgiScope, headers: Headers) -> str:
    """What the session's cookie is called on this line."""
    return SECURE_COOKIE if is_https(scope, headers) else COOKIE


def cookie_value(scope: AsgiScope, headers: Headers) -> str | None:
    """The session cookie that was sent, if it has the form of one."""
    value = cookie_parser(headers.get("cookie", "")).get(cookie_name(scope, headers), "")
    return value if _COOKIE_VALUE.fullmatch(value) else None


def bearer(headers: Headers) -> Lookup | None:
    """How to look up the token of the Authorization header; None = there is no such header.

    Raises:
        Problem: token-invalid; two headers, another scheme, or what is no token of ours.
    """
    sent = headers.getlist("authorization")
    if not sent:
        return None
    scheme, _, secret = sent[0].partition(" ")
    secret = secret.strip()
    if len(sent) > 1 or scheme.lower() != "bearer" or not _TOKEN.fullmatch(secret):
        raise token_invalid("Authorization must be given once, as `Bearer bb_…`")

    def look_up(database: Database) -> Principal | None:
        with database.read() as session:
            token = find_token(session, secret)
            return None if token is None else Principal.of_token(token)

    return look_up


def page_session(scope: AsgiScope, headers: Headers) -> Lookup | None:
    """How to look up the session of the cookie; None = there is none, or another site's page made the browser send it.

    Raises:
        Problem: cross-site-request; something is to be changed, and nothing says that our own page asks for it.
    """
    value = cookie_value(scope, headers)
    if value is None:
        return None
    site = headers.get("sec-fetch-site")
    if scope["method"] in SAFE_METHODS:
        if site not in (None, "same-origin", "none"):
            return None
    elif site != "same-origin" and not (
        site is None and is_own_origin(headers.get("origin", ""), headers.get("host", ""))
    ):
        raise Problem(
            403,
            "cross-site-request",
            "a cookie changes something only from our own page, which browsers tell by Sec-Fetch-Site or Origin: "
            "programs send a token",
        )

    def look_up(database: Database) -> Principal | None:
        with database.read() as session:
            found = find_session(session, value)
            return None if found is None else Principal.of_session(found[1], found[0].expires_at)

    return look_up
