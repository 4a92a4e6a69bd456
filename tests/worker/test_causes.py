"""Causes: the code, the retry, the words."""

from __future__ import annotations

import errno
import json
from typing import Any

import pytest
import torch
from rq.timeouts import JobTimeoutException
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, OperationalError, ProgrammingError

from compress_core.errors import CheckpointError, NonFiniteValues, OutOfMemory
from results_db.errors import NotFound, PathNotAllowed
from worker.causes import describe, naming
from worker.errors import MissingInput


def cause(error: BaseException, *, starved: bool = False) -> dict[str, Any]:
    try:
        raise error
    except BaseException as raised:  # noqa: BLE001 - any error has a cause
        return describe(raised, starved=starved)


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (NonFiniteValues("NaN"), "non-finite-values", False),
        (CheckpointError("truncated"), "invalid-checkpoint", False),
        (OutOfMemory("no room"), "out-of-memory", True),
        (MemoryError(), "out-of-memory", True),
        (torch.OutOfMemoryError("CUDA out of memory"), "out-of-memory", True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out-of-memory", True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be …"), "out-of-memory", True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), "out-of-memory", True),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "out-of-memory",
            True,
        ),
        (RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED"), "out-of-memory", True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out-of-memory", True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "unexpected-error", False),
        (RuntimeError("shapes differ"), "unexpected-error", False),
        (MissingInput("no calibration"), "missing-input", False),
        (NotFound("model", "m"), "database-refused", False),
        (PathNotAllowed("/x", ["/y"]), "path-not-allowed", False),
        (JobTimeoutException("too long"), "timeout", False),
        (OSError(errno.ENOSPC, "No space left on device"), "disk-full", False),
        (OSError(errno.EACCES, "Permission denied"), "unexpected-error", False),
        (OperationalError("SELECT 1", {}, Exception("gone")), "database-unavailable", True),
        (InterfaceError("SELECT 1", {}, Exception("connection already closed")), "database-unavailable", True),
        (DataError("INSERT", {}, Exception("value too long")), "database-refused", False),
        (ProgrammingError("SELECT 1", {}, Exception("no such column")), "database-refused", False),
        (IntegrityError("INSERT", {}, Exception("foreign key")), "database-refused", False),
        (DBAPIError("COMMIT", {}, Exception("broken"), connection_invalidated=True), "database-unavailable", True),
        (KeyError("x"), "unexpected-error", False),
    ],
)
def test_codes(error: BaseException, code: str, retryable: bool) -> None:
    described = cause(error)
    assert (described["code"], described["retryable"]) == (code, retryable)
    assert described["message"]
    assert type(error).__name__ in described["type"]
    assert "Traceback" in described["traceback"]
    json.dumps(described)


def test_out_of_memory_is_retried_once() -> None:
    assert cause(MemoryError())["retryable"]
    assert not cause(MemoryError(), starved=True)["retryable"]


def test_an_error_says_what_it_was_about() -> None:
    def damaged() -> None:
        with naming("model tiny"), naming("matrix 3.down"):
            raise NonFiniteValues("NaN in the weight")

    with pytest.raises(NonFiniteValues) as caught:
        damaged()
    assert describe(caught.value, starved=False)["message"] == "model tiny: matrix 3.down: NaN in the weight"


def test_no_nul_reaches_postgresql() -> None:
    assert cause(ValueError("a\x00b"))["message"] == "a\\0b"


def test_a_long_traceback_keeps_its_end() -> None:
    described = cause(ValueError("x" * 50_000 + "the end"))
    assert len(described["traceback"]) <= 20_000
    assert described["traceback"].rstrip().endswith("the end")


def test_secrets_are_masked() -> None:
    """Drivers quote the address that they cannot reach."""
    url = "postgresql://me:hunter2hunter2@db:5432/x?password=alsohunter2"
    error = cause(OperationalError("SELECT 1", {}, Exception(f"cannot connect to {url}")))
    assert "hunter2" not in json.dumps(error)
    assert "***@db:5432" in error["message"]
    assert "***@db:5432" in error["traceback"]
