"""The worker that this process is, or was forked from."""

from __future__ import annotations

from dataclasses import dataclass

from results_db.settings import Settings
from worker.device import Device
from worker.errors import WorkerError
from worker.stop import StopRequest


@dataclass(frozen=True, slots=True)
class CurrentWorker:
    """What the parent knows and its work horses need; holds no connection, since those must not cross a fork."""

    id: str
    pid: int
    settings: Settings
    device: Device
    #: a horse's own copy, asked by SIGTERM
    stop: StopRequest


_current: CurrentWorker | None = None


def set_current(worker: CurrentWorker) -> None:
    global _current
    _current = worker


def current_worker() -> CurrentWorker:
    """The worker of this process.

    Raises:
        WorkerError: called outside a worker.
    """
    if _current is None:
        raise WorkerError("run_attempt runs inside a worker: start one with `python -m worker`")
    return _current
