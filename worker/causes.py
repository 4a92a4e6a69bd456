"""From an exception to the cause that a job shows: what it is called, and whether a retry can help."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rq.timeouts import JobTimeoutException
from sqlalchemy.exc import DBAPIError

from compress_core.errors import CompressCoreError
from results_db.cause import cause_of
from results_db.errors import ResultsDbError
from worker.database import is_away
from worker.errors import WorkerError

#: torch for host memory; CUDA and Triton for a card's; cuBLAS, cuSOLVER and cuDNN for their own part of it
_NO_MEMORY = re.compile(r"can't allocate memory|CUDA(?: error|\]): out of memory|_STATUS_ALLOC_FAILED")


@contextmanager
def naming(subject: str) -> Iterator[None]:
    """Let an error that passes through say what it was about, for example "matrix 3.down"."""
    try:
        yield
    except (CompressCoreError, MemoryError, RuntimeError, ValueError) as error:
        error.add_note(subject)
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """MemoryError, torch's device error, what the system says to a mapping, and RuntimeErrors that mean the same."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, CompressCoreError):
        return error.code == "out-of-memory"
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def describe(error: BaseException, *, starved: bool) -> dict[str, Any]:
    """The cause, and whether the same job could succeed later: out of memory once, a lost database yes, NaN never.

    Args:
        starved: whether the job has already been tried with the small batch that follows a lack of memory.
    """
    code, retryable = _classify(error, starved)
    return cause_of(error, code, retryable=retryable)


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
        return ("database-unavailable", True) if is_away(error) else ("database-refused", False)
    return "unexpected-error", False
