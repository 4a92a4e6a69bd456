"""/login and /logout: a browser trades a token for a cookie, and gives it back."""

from __future__ import annotations

import logging
import math
from datetime import timedelta
from urllib.parse import parse_qs

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from results_db import Database
from results_db.page_sessions import NewSession, close_session, open_session
from results_db.settings import Settings
from results_db.tokens import find_token
from server.kit.problem import Problem
from server.security.attempts import Attempts
from server.security.credentials import cookie_name, cookie_value, is_https
from server.security.principal import principal_of
from web.render import page

log = logging.getLogger(__name__)

_FORM = "application/x-www-form-urlencoded"
#: a token and a path are far shorter
_LONGEST_FORM = 8_192
_LONGEST_TOKEN = 200


def make_router(database: Database, settings: Settings) -> APIRouter:
    """The two routes; failed attempts are counted by this router's process."""
    router = APIRouter(include_in_schema=False)
    attempts = Attempts()
    lasts = timedelta(hours=settings.session_hours)

    @router.get("/login")
    def ask(request: Request, next: str = "/") -> Response:
        return _page(request, next)

    @router.post("/login")
    async def log_in(request: Request) -> Response:
        form = await _form(request)
        caller = request.client.host if request.client else "unknown"
        if (wait_s := attempts.wait_s(caller)) > 0:
            answer = _page(request, form.get("next", "/"), status=429, wait_s=math.ceil(wait_s))
            answer.headers["Retry-After"] = str(math.ceil(wait_s))
            return answer
        secret = form.get("token", "").strip()
        # beforehand: those that are tried at the same moment count as well
        attempts.failed(caller)
        opened = await to_thread.run_sync(_open, database, secret, lasts)
        if opened is None:
            log.warning("a wrong token at /login from %s", caller)
            return _page(request, form.get("next", "/"), status=401, refused=True)
        attempts.worked(caller)
        answer = RedirectResponse(safe_next(form.get("next", "/")), status_code=303)
        _set_cookie(answer, request, opened.secret)
        return answer

    @router.post("/logout")
    async def log_out(request: Request) -> Response:
        secret = cookie_value(request.scope, request.headers)
        if secret is not None:
            await to_thread.run_sync(_close, database, secret)
        answer = RedirectResponse("/login", status_code=303)
        _set_cookie(answer, request, "")
        return answer

    return router


def safe_next(asked: str) -> str:
    """Where to go after the login: a path of this site, whatever was asked for.

    Browsers read ``//host``, ``/\\host`` and, after they drop tabs and line breaks, ``/<tab>/host`` as another site.
    """
    if not asked.startswith("/") or asked[1:2] in ("/", "\\"):
        return "/"
    if not asked.isascii() or any(ord(c) <= 0x20 or c in "\x7f\\" for c in asked):
        return "/"
    return "/" if asked.startswith(("/login", "/logout")) else asked


async def _form(request: Request) -> dict[str, str]:
    """The fields of a plain form.

    Raises:
        Problem: unsupported-media-type, too-large.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != _FORM:
        raise Problem(415, "unsupported-media-type", f"/login reads the form of its own page: {_FORM}")
    body = await request.body()
    if len(body) > _LONGEST_FORM:
        raise Problem(413, "too-large", f"a login has at most {_LONGEST_FORM:,} bytes")
    fields = parse_qs(body.decode("utf-8", "replace"))
    return {name: values[0] for name, values in fields.items()}


def _open(database: Database, secret: str, lasts: timedelta) -> NewSession | None:
    if not 0 < len(secret) <= _LONGEST_TOKEN:
        return None
    with database.write() as session:
        token = find_token(session, secret)
        return None if token is None else open_session(session, token, lasts)


def _close(database: Database, secret: str) -> None:
    with database.write() as session:
        close_session(session, secret)


def _set_cookie(answer: Response, request: Request, secret: str) -> None:
    """Give the browser its cookie, or with "" take it away; the browser forgets it when it is closed."""
    answer.set_cookie(
        cookie_name(request.scope, request.headers),
        secret,
        max_age=None if secret else 0,
        path="/",
        httponly=True,
        samesite="strict",
        secure=is_https(request.scope, request.headers),
    )


def _page(request: Request, next_: str, *, status: int = 200, refused: bool = False, wait_s: int = 0) -> Response:
    principal = principal_of(request)
    return page("login.html", status=status, next=safe_next(next_), principal=principal, refused=refused, wait_s=wait_s)
