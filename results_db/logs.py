"""Logs of server and worker: one line a record, JSON for programs or text for people, with the ids of what it is about.

``bind`` gives ids to every line of a block, in whatever module it is written; a job carries the trace id of the request
that submitted it, so that both sides' logs can be put together with one word.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from results_db.masking import MASK, mask

LogFormat = Literal["auto", "json", "text"]
LogLevel = Literal["debug", "info", "warning", "error"]

#: a trace id of ours or of W3C trace context: 32 hex digits; callers may send 8 to 64 letters, digits, - and _
_TRACE = re.compile(r"[A-Za-z0-9_-]{8,64}")
_TRACEPARENT = re.compile(r"^[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")

#: what no line shows as it is: line breaks, also Unicode's, and what terminals take for commands
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_bound: ContextVar[Mapping[str, str]] = ContextVar("bitbudget_log_ids", default={})  # noqa: B039 - never changed in place

#: fields given as ``extra`` whose values are never shown
_SECRET_FIELD = re.compile(r"(?i)(password|passwd|secret|token|signature|credential|cookie|authorization|_key)$")
#: what every record has: the rest came as ``extra``
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


@contextmanager
def bind(**ids: str | None) -> Iterator[None]:
    """Every line that this block logs, in this thread or task, carries these ids; None leaves one as it is.

    A thread that is started inside takes them along only with ``contextvars.copy_context().run``.
    """
    token = _bound.set({**_bound.get(), **{name: value for name, value in ids.items() if value is not None}})
    try:
        yield
    finally:
        _bound.reset(token)


def bind_for_good(**ids: str) -> None:
    """As :func:`bind`, until this thread's or task's context ends: for a request, whose task ends with it."""
    _bound.set({**_bound.get(), **ids})


def current_trace() -> str | None:
    """The trace id of the request or job that this code runs for."""
    return _bound.get().get("trace_id")


def new_trace() -> str:
    """A fresh trace id, in the form of W3C trace context."""
    return secrets.token_hex(16)


def trace_from(traceparent: str | None, trace_id: str | None) -> str | None:
    """The caller's trace id where one of its two headers is well-formed, else None."""
    match = _TRACEPARENT.match(traceparent or "")
    if match and set(match[1]) != {"0"}:
        return match[1]
    return trace_id if trace_id and _TRACE.fullmatch(trace_id) else None


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the bound ids, ``extra`` fields, and the exception."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": mask(record.getMessage()),
        }
        entry |= _bound.get()
        entry |= _extras(record)
        if trouble := _trouble(self, record):
            entry["exception"] = trouble
        # a surrogate that stood for a byte of a file's name must not end the log
        return json.dumps(entry, ensure_ascii=False, default=str).encode(errors="replace").decode()


class TextLines(logging.Formatter):
    """The same for people: ``time LEVEL logger: message  [job_id=… trace_id=…]``."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {**_bound.get(), **_extras(record)}
        about = "".join(f" {name}={_one_line(str(value))}" for name, value in fields.items())
        message = _one_line(mask(record.getMessage()))
        line = f"{_time(record)} {record.levelname} {record.name}: {message}"
        line += f"  [{about.strip()}]" if about else ""
        trouble = _trouble(self, record)
        return (f"{line}\n{trouble}" if trouble else line).encode(errors="replace").decode()


def configure_logs(format: LogFormat = "auto", level: LogLevel = "info", *, stream: TextIO | None = None) -> None:
    """Make this process log in the house's form, uvicorn and RQ included. Call it once, in an entry point.

    ``auto`` is text on a terminal and JSON lines elsewhere.
    """
    stream = stream or sys.stderr
    as_text = format == "text" or (format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextLines() if as_text else JsonLines())
    root = logging.getLogger()
    for old in [*root.handlers]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "rq", "rq.worker"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)  # the root's level decides
    # the server tells of each request itself, with its trace; alembic tells of every start
    for name in ("uvicorn.access", "alembic", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


def readable(line: str) -> str:
    """A JSON line of a log as text for people; any other line as it is."""
    if not line.startswith('{"time"'):
        return line
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    exception = entry.pop("exception", None)
    head = [entry.pop(name, "") for name in ("time", "level", "logger", "message")]
    about = "  [" + " ".join(f"{name}={value}" for name, value in entry.items()) + "]" if entry else ""
    text = _one_line(f"{head[0]} {head[1].upper()} {head[2]}: {head[3]}{about}")
    return f"{text}\n{exception}" if exception else text


def _one_line(text: str) -> str:
    """A line break could pretend to be a line of ours, and an escape sequence rewrites what the terminal shows."""
    return _CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    """What came as ``extra``: numbers and booleans as they are, the rest as masked text."""
    found = {name: value for name, value in vars(record).items() if name not in _STANDARD and value is not None}
    return {name: MASK if _SECRET_FIELD.search(name) else _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float) else mask(str(value))


def _trouble(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    parts = []
    if record.exc_info:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return mask("\n".join(parts)) or None
