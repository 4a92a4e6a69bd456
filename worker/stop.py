"""Why a job should stop: a person cancelled or paused it, or the worker is shutting down."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


class StopRequest:
    """Set by the heartbeat thread or a signal handler, read by the job's thread; the first reason stays."""

    def __init__(self) -> None:
        #: "cancel", "pause" or "shutdown"
        self.reason: str | None = None

    def ask(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason

    def ask_on_sigterm(self) -> None:
        """SIGTERM means: finish the current experiment, then give the attempt back. However often it comes."""
        signal.signal(signal.SIGTERM, lambda _number, _frame: self.ask("shutdown"))


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies: a lone horse would go on using the GPU."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # the parent died before the call
        os._exit(1)
