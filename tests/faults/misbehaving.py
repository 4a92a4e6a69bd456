"""``python -m tests.faults.misbehaving``: a worker that misbehaves where a test has asked it to.

The test writes acts, one a line, into the file ``acts`` of the var folder; each attempt takes the first line when it
comes to that act's point. Everything else is the worker that people run.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: the module that a worker process runs
PROGRAM = "tests.faults.misbehaving"
#: the file in the var folder that holds the acts to come
ACTS = "acts"
#: the file in the var folder that ends ``dawdle``
GO = "go"
#: variable with the memory cgroup that ``fill_memory`` moves into
CGROUP = "BITBUDGET_TEST_CGROUP"
#: variable whose presence makes the worker wait for a database that is away for a moment instead of half a minute
IMPATIENT = "BITBUDGET_TEST_IMPATIENT"

_CHUNK = 1 << 24


def exit_() -> None:
    """What a C library does that thinks it knows better."""
    os._exit(7)


def memory_error() -> None:
    raise MemoryError("cannot allocate 4.0 GB")


def error() -> None:
    raise RuntimeError("this config is cursed")


def segfault() -> None:
    ctypes.string_at(0)


def fill_memory() -> None:
    """Allocate and touch until the kernel has had enough."""
    group = Path(os.environ[CGROUP])
    (group / "cgroup.procs").write_text(str(os.getpid()))
    hoard = []
    while True:
        hoard.append(b"x" * _CHUNK)


def fill_address_space() -> None:
    """Allocate until the process's own limit says no: Python raises MemoryError."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * _CHUNK, resource.RLIM_INFINITY))
    hoard = []
    while True:
        hoard.append(b"x" * _CHUNK)


def hang() -> None:
    """Compute for ever and listen to nobody."""
    while True:
        time.sleep(0.1)


def hold_gil() -> None:
    """A call that keeps the interpreter to itself: no other thread runs, the heartbeat's included."""
    ctypes.PyDLL(None).sleep(3600)


def dawdle() -> None:
    """Run until the test says ``go``."""
    while not (Path(os.environ["BITBUDGET_VAR_DIR"]) / GO).exists():
        time.sleep(0.05)


def kill_horse() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_worker() -> None:
    """Parent and horse at one moment."""
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


#: name of an act: its point, and what it does there
_AT_CLAIM, _AT_HANDLER, _AT_FINISH = "claim", "handler", "finish"
_ACTS: dict[str, tuple[str, Callable[[], None]]] = {
    "exit": (_AT_HANDLER, exit_),
    "memory-error": (_AT_HANDLER, memory_error),
    "error": (_AT_HANDLER, error),
    "segfault": (_AT_HANDLER, segfault),
    "hang": (_AT_HANDLER, hang),
    "hold-gil": (_AT_HANDLER, hold_gil),
    "dawdle": (_AT_HANDLER, dawdle),
    "fill-memory": (_AT_HANDLER, fill_memory),
    "fill-address-space": (_AT_HANDLER, fill_address_space),
    "kill-horse-before-claim": (_AT_CLAIM, kill_horse),
    "kill-worker-before-claim": (_AT_CLAIM, kill_worker),
    "kill-horse-before-finish": (_AT_FINISH, kill_horse),
    "kill-worker-before-finish": (_AT_FINISH, kill_worker),
}


def _act(point: str) -> None:
    path = Path(os.environ["BITBUDGET_VAR_DIR"]) / ACTS
    acts = path.read_text().split() if path.exists() else []
    if acts and _ACTS[acts[0]][0] == point:
        path.write_text("\n".join(acts[1:]))
        _ACTS[acts[0]][1]()


def _before(point: str, do: Callable[..., Any]) -> Callable[..., Any]:
    def acting(*arguments: Any, **options: Any) -> Any:
        _act(point)
        return do(*arguments, **options)

    return acting


def _probe(_params: Any, _context: Any) -> dict[str, Any]:
    _act(_AT_HANDLER)
    return {"fine": True}


def main() -> int:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import worker.context
    import worker.main
    import worker.run
    from results_db.states import JobKind

    handler_of = worker.run.handler_of
    worker.run.handler_of = lambda kind: _probe if kind == JobKind.PROBE else handler_of(kind)
    worker.run.claim_attempt = _before(_AT_CLAIM, worker.run.claim_attempt)
    worker.run.finish_attempt = _before(_AT_FINISH, worker.run.finish_attempt)
    if IMPATIENT in os.environ:
        worker.context._PAUSES_S = (0.05, 0.1)
    return worker.main.main([])


if __name__ == "__main__":
    sys.exit(main())
