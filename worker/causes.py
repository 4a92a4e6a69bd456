"""From an exception to the cause that a job shows: {"code", "message", "type", "traceback", "retryable"}."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rq.timeouts import JobTimeoutException
from sqlalchemy.exc import DBAPIError

from compress_core.errors import CompressCoreError
from results_db.errors import ResultsDbError
from results_db.masking import mask
from worker.errors import WorkerError

#: a traceback keeps its end, which names the cause
_TRACEBACK_CHARACTERS = 20_000


@contextmanager
def naming(subject: str) -> Iterator[None]:
    """Let an error that passes through say what it was about, for example "matrix 3.down"."""
    try:
        yield
    except (CompressCoreError, MemoryError, RuntimeError, ValueError) as error:
        error.add_note(subject)
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """MemoryError, torch's device error, and the RuntimeError that torch raises for host memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, CompressCoreError):
        return error.code == "out-of-memory"
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def describe(error: BaseException, *, starved: bool) -> dict[str, Any]:
    """The cause, and whether the same job could succeed later: out of memory once, a lost database yes, NaN never.

    Args:
        starved: whether the job has already been tried with the small batch that follows a lack of memory.
    """
    code, retryable = _classify(error, starved)
    lines = "".join(traceback.format_exception(error))
    about = "".join(f"{note}: " for note in reversed(getattr(error, "__notes__", [])))
    return {
        "code": code,
        "message": _clean(f"{about}{error}".strip() or type(error).__name__),
        "type": f"{type(error).__module__}.{type(error).__qualname__}",
        "traceback": _clean(lines[-_TRACEBACK_CHARACTERS:]),
        "retryable": retryable,
    }


def _classify(error: BaseException, starved: bool) -> tuple[str, bool]:
    if is_out_of_memory(error):
        return "out-of-memory", not starved
    if isinstance(error, CompressCoreError | WorkerError):
        return error.code, error.retryable
    if isinstance(error, ResultsDbError):
        return str(getattr(error, "code", "database-refused")), False
    if isinstance(error, JobTimeoutException):
        return "timeout", False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk-full", False
    if isinstance(error, DBAPIError):
        return "database-unavailable", True
    return "unexpected-error", False


def _clean(text: str) -> str:
    """The page shows it: without passwords and tokens. PostgreSQL's text knows no NUL."""
    return mask(text).replace("\x00", "\\0")
