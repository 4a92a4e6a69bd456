"""problem+json (RFC 9457) for everything that goes wrong, with types that stay."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sqlalchemy.exc import DataError, IntegrityError, OperationalError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from compress_core.errors import CompressCoreError, InfeasibleBudget
from results_db.errors import NotFound, PathNotAllowed, PathNotUsable, WrongState
from results_db.logs import current_trace, new_trace
from server.kit.answers import Answer, Answered
from server.kit.problems import BY_STATUS, PROBLEMS

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """An answer that is not the one hoped for: a status, a slug of the catalogue (server/kit/problems.py), and a
    sentence that names thing and cure."""

    def __init__(
        self, status: int, slug: str, detail: str, *, headers: Mapping[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.slug = slug
        self.detail = detail
        self.headers = dict(headers or {})
        self.extra = extra

    def response(self) -> Response:
        """The problem as application/problem+json, with the trace id under which the log tells more."""
        kind = PROBLEMS[self.slug]
        body = {"type": kind.type, "title": kind.title, "status": self.status, "detail": self.detail}
        if (trace_id := current_trace()) is not None:
            body["trace_id"] = trace_id
        return Answer(body | self.extra, status_code=self.status, headers=self.headers, media_type=MEDIA_TYPE)


def invalid(field: str, message: str, *, slug: str = "invalid-request", **extra: Any) -> Problem:
    """A 422 that names the field."""
    return Problem(
        422, slug, f"{field}: {message}" if field else message, errors=[{"field": field, "message": message}], **extra
    )


def core_problem(error: CompressCoreError, field: str = "") -> Problem:
    """What compress_core refused, as a 422 with its own code as slug."""
    extra = {"smallest_bytes": error.smallest_bytes} if isinstance(error, InfeasibleBudget) else {}
    return invalid(field, str(error), slug=error.code, **extra)


def validation_problem(errors: Sequence[Any]) -> Problem:
    """A 422 from pydantic's list of errors; the detail names the first field."""
    found = [{"field": _field(error), "message": _message(error), "code": error["type"]} for error in errors]
    first = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    detail = f"{first['field']}: {first['message']}{more}" if first["field"] else f"{first['message']}{more}"
    return Problem(422, "invalid-request", detail, errors=found)


def add_handlers(app: FastAPI) -> None:
    """Make every error of the application a problem."""
    app.add_exception_handler(Answered, lambda _request, error: error.response)
    app.add_exception_handler(Problem, _answer(lambda e: e))
    app.add_exception_handler(RequestValidationError, _answer(lambda e: validation_problem(e.errors())))
    app.add_exception_handler(ValidationError, _answer(lambda e: validation_problem(e.errors())))
    app.add_exception_handler(HTTPException, _answer(_from_http))
    app.add_exception_handler(NotFound, _answer(lambda e: Problem(404, "not-found", str(e), noun=e.noun, id=e.id)))
    app.add_exception_handler(WrongState, _answer(lambda e: Problem(409, "wrong-state", str(e))))
    app.add_exception_handler(PathNotAllowed, _answer(lambda e: Problem(403, "path-not-allowed", str(e), path=e.path)))
    app.add_exception_handler(PathNotUsable, _answer(lambda e: Problem(422, "path-not-usable", str(e), path=e.path)))
    app.add_exception_handler(CompressCoreError, _answer(core_problem))
    app.add_exception_handler(DataError, _answer(_from_data))
    app.add_exception_handler(UnicodeEncodeError, _answer(_from_unicode))
    app.add_exception_handler(IntegrityError, _answer(_from_integrity))
    app.add_exception_handler(OperationalError, _answer(_from_operational))
    app.add_exception_handler(Exception, _answer(_from_unexpected))


def _answer(convert: Any) -> Any:
    def handler(request: Request, error: Exception) -> Response:
        problem: Problem = convert(error)
        response: Response = problem.response()
        return response

    return handler


def _from_http(error: HTTPException) -> Problem:
    phrase = HTTPStatus(error.status_code).phrase
    slug = BY_STATUS.get(error.status_code, "http-error")
    detail = error.detail if error.detail and error.detail != phrase else f"{phrase}: look at /openapi.json"
    if detail == "There was an error parsing the body":  # FastAPI's words for JSON that is no UTF-8, or too deep
        detail = "the body cannot be read as JSON: send UTF-8, nested less deeply"
    return Problem(error.status_code, slug, detail, headers=error.headers)


def _from_integrity(error: IntegrityError) -> Problem:
    log.warning("a write met a row that exists or is missing: %s", error.orig)
    return Problem(
        409, "conflict", "another request wrote the same thing at the same moment: send this one again", retryable=True
    )


def _from_data(error: DataError) -> Problem:
    log.warning("the database cannot hold a value: %s", error.orig)
    return invalid("", "a value cannot be stored: a number beyond its column, or a text that holds a NUL")


def _from_unicode(error: UnicodeEncodeError) -> Problem:
    """A lone surrogate, which JSON may escape and no database takes."""
    log.warning("a text is no valid Unicode: %s", error)
    return invalid("", "a text holds a lone surrogate (\\ud800 to \\udfff), which is no character: leave it out")


def _from_operational(error: OperationalError) -> Problem:
    log.error("the database refused: %s", error.orig)
    return Problem(
        503,
        "database-unavailable",
        "the database is locked or away; nothing was written: send the request again in a moment",
        headers={"Retry-After": "2"},
        retryable=True,
    )


def _from_unexpected(error: Exception) -> Problem:
    trace_id = current_trace() or new_trace()
    log.error("unexpected error, trace %s", trace_id, exc_info=error)
    return Problem(
        500,
        "internal-error",
        f"an unexpected error; the server's log has it under trace {trace_id}",
        headers={"X-Trace-Id": trace_id},
        trace_id=trace_id,
    )


def _field(error: Mapping[str, Any]) -> str:
    if error["type"] == "json_invalid":  # the place is a character of the body
        return ""
    parts = [str(part) for part in error["loc"]]
    if parts and parts[0] == "query":  # a parameter that may be given several times has a number behind it
        return parts[1]
    if parts and parts[0] in ("body", "path", "header"):
        parts = parts[1:]
    return ".".join(parts)


def _message(error: Mapping[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return "unknown field"
    if error["type"] == "json_invalid":
        return f"the body is not valid JSON: {(error.get('ctx') or {}).get('error', message)}"
    # a value_error here is a model's own: two fields that do not go together
    if tuple(error["loc"]) == ("body",) and error["type"] != "value_error":
        return "the body must be a JSON object, sent with Content-Type: application/json"
    given = error.get("input")
    if isinstance(given, int) and given.bit_length() > 256:  # Python writes no number of thousands of digits
        return message
    return f"{message}, not {given!r}" if isinstance(given, str | int | float) and len(repr(given)) < 80 else message
