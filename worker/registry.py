"""Which handler runs which kind of job."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from results_db.states import WORKER_KINDS, JobKind
from worker.context import JobContext

#: takes the kind's parameters (results_db.params) and a context; returns the job's result
Handler = Callable[[Any, JobContext], dict[str, Any]]


def handler_of(kind: JobKind) -> Handler:
    """``run`` of the module in worker.handlers that bears the kind's name; imported when it is first needed.

    Raises:
        ValueError: this kind runs in the server.
    """
    if kind not in WORKER_KINDS:
        raise ValueError(f"{kind.value} jobs run in the server, not in a worker")
    handler: Handler = import_module(f"worker.handlers.{kind.value}").run
    return handler
