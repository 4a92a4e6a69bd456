"""Client of the HTTP API: problems become messages, pages become one list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from cli.errors import CliError, ExitCode, Unreachable
from results_db.loopback import is_loopback

PREFIX = "/api/v1"
#: rows asked for at once
_PAGE = 200


class ApiProblem(CliError):
    """The server's problem+json."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.body = _problem_body(response)
        self.slug = str(self.body.get("type", "")).rsplit(":", 1)[-1]
        title = self.body.get("title") or response.reason_phrase
        detail = self.body.get("detail") or "the server gave no reason"
        super().__init__(
            f"{title} ({self.status}): {detail}{_further_fields(self.body)}",
            cure=_cure(self.slug),
            code=ExitCode.USAGE if self.status < 500 else ExitCode.UNREACHABLE,
        )


class Api:
    """One server.

    Every method raises ``Unreachable`` when nothing answers and ``ApiProblem`` when the server refuses.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._token = token
        try:
            # a proxy of the environment is not asked for a server on this machine
            self._client = httpx.Client(
                base_url=self.url,
                timeout=timeout_s,
                trust_env=not _is_loopback(self.url),
                transport=transport,
                # redirects are not followed: the token goes to this server alone
                headers={} if token is None else {"Authorization": f"Bearer {token}"},
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise CliError(f"{url!r} is no URL: {error}", cure="write http://HOST:PORT") from error

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._client.close()

    def another(self) -> Api:
        """The same server for another thread."""
        return Api(self.url, token=self._token)

    def get(self, path: str, **params: Any) -> Any:
        """JSON of a GET; parameters that are None are left out."""
        return self._json(self._send("GET", path, params=_given(params)))

    def post(self, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None) -> Any:
        """JSON of a POST."""
        return self._json(self._send("POST", path, json=body, headers=headers))

    def patch(self, path: str, body: Any) -> Any:
        """JSON of a PATCH."""
        return self._json(self._send("PATCH", path, json=body))

    def items(self, path: str, *, limit: int | None = None, **params: Any) -> Iterator[dict[str, Any]]:
        """Items of a list, page after page, at most ``limit``."""
        cursor: str | None = None
        left = limit
        while True:
            size = _PAGE if left is None else min(_PAGE, left)
            page = self.get(path, limit=size, cursor=cursor, **params)
            yield from page["items"]
            if left is not None:
                left -= len(page["items"])
            cursor = page["next"]
            if cursor is None or left == 0:
                return

    @contextmanager
    def stream(
        self, path: str, *, headers: Mapping[str, str] | None = None, read_timeout_s: float | None = 60.0, **params: Any
    ) -> Iterator[httpx.Response]:
        """A GET whose body is read while it comes.

        Raises:
            httpx.TransportError: the stream broke after it had begun; the caller knows whether that matters.
        """
        timeout = httpx.Timeout(10.0, read=read_timeout_s)
        request = self._client.build_request(
            "GET", PREFIX + path, params=_given(params), headers=headers, timeout=timeout
        )
        try:
            response = self._client.send(request, stream=True)
        except httpx.TransportError as error:
            raise Unreachable(self.url, _reason(error)) from error
        try:
            if response.is_error:
                response.read()
                raise ApiProblem(response)
            yield response
        finally:
            response.close()

    def _json(self, response: httpx.Response) -> Any:
        try:
            return response.raise_for_status().json()
        except (httpx.HTTPStatusError, ValueError) as error:  # a redirect, or a page: somebody else's server
            raise Unreachable(self.url, "what answers there is no bitbudget server") from error

    def _send(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        try:
            response = self._client.request(method, PREFIX + path, **kwargs)
        except httpx.TransportError as error:
            raise Unreachable(self.url, _reason(error)) from error
        if response.is_error:
            raise ApiProblem(response)
        return response


_LIST_THEM = "list what there is: `bitbudget jobs list`; `studies`, `workers` and `measurements` have a list too"


def segment(id_: str) -> str:
    """An id as one segment of a path: a slash in it leads nowhere else.

    Raises:
        CliError: it is empty, and the path would be the list's.
    """
    if not id_:
        raise CliError("the id is empty", cure=_LIST_THEM)
    return quote(id_, safe="")


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _problem_body(response: httpx.Response) -> dict[str, Any]:
    if "json" not in response.headers.get("content-type", ""):
        return {"title": response.reason_phrase, "detail": response.text[:300] or None}
    try:
        body = response.json()
    except ValueError:
        body = response.text[:300]
    return body if isinstance(body, dict) else {"detail": str(body)}


def _further_fields(body: Mapping[str, Any]) -> str:
    """The detail names the first field that is wrong; the others follow, one a line."""
    errors = body.get("errors")
    if not isinstance(errors, list):
        return ""
    return "".join(f"\n  {error.get('field')}: {error.get('message')}" for error in errors[1:])


def _cure(slug: str) -> str | None:
    """What the command line itself can add to the server's sentence."""
    return {
        "not-found": _LIST_THEM,
        "token-missing": "set BITBUDGET_TOKEN, or --token-file (BITBUDGET_TOKEN_FILE); `bitbudget tokens create NAME "
        "--scope write`, run where the server's database is, makes one",
        "token-invalid": "`bitbudget tokens list`, run where the server's database is, shows the tokens that work",
        "scope-missing": "use a token of that scope: `bitbudget tokens create NAME --scope …`",
        "path-not-allowed": "start the server with the folder in BITBUDGET_MODEL_ROOTS (folders separated as in PATH)",
    }.get(slug)


def _reason(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    if isinstance(error, httpx.ConnectError):
        return "connection refused or no such host"
    return str(error) or type(error).__name__


def _is_loopback(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False
