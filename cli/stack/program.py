"""One program of the stack: its process, its log, its end."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from results_db.logs import readable

_PR_SET_PDEATHSIG = 1
#: how much of a log's end is read for its tail
_TAIL_BYTES = 16_384


@dataclass
class Program:
    """A child process that writes to one log file.

    It runs in a session of its own, so that Ctrl-C reaches the supervisor alone and the programs can be stopped in
    order. On Linux it receives SIGTERM when the supervisor dies, however that happens, unless ``dies_with_us`` is
    false. Start it from the main thread: the kernel watches the thread that started it.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path
    #: seconds between SIGTERM and SIGKILL
    grace_s: float = 15.0
    dies_with_us: bool = True
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def pid(self) -> int | None:
        return None if self.process is None else self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def ending(self) -> str:
        """How it ended, for people."""
        if self.process is None:
            return "was not started"
        code = self.process.poll()
        if code is None:
            return "is running"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def start(self) -> None:
        """Start it, or start it again. The log is appended to."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                list(self.argv),
                env=dict(self.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent() if self.dies_with_us else None,
            )

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after the grace time, for its whole group: no work horse stays behind."""
        process = self.process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        deadline = time.monotonic() + self.grace_s
        while time.monotonic() < deadline and not _has_ended(process.pid):
            time.sleep(0.02)
        # it is not reaped yet, so its process id, which is the group's, cannot be anyone else's
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log_tail(self, lines: int = 15) -> str:
        """The log's last lines, for people."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
        shown = [part for line in text.splitlines()[-lines:] for part in readable(line).splitlines()]
        return "\n".join(shown[-lines:])


def _has_ended(pid: int) -> bool:
    """Whether our child has ended; it stays unreaped."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _die_with_parent() -> Callable[[], None] | None:
    """What the child calls before exec so that the kernel sends it SIGTERM when its parent dies (Linux)."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def call() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    return call
