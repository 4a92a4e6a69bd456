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
#: seconds that a program may take to end before people are told what is waited for
_PROMPT_S = 1.0


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
    #: seconds between SIGTERM and a second one, for a program that then ends at once and in order; None sends none
    insist_s: float | None = None
    #: what it may be doing when it does not end at once, for people
    finishing: str = "its work"
    dies_with_us: bool = True
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    #: when it was asked to end (time.monotonic)
    _asked_at: float | None = field(default=None, init=False)

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
        self._asked_at = None
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

    def ask(self) -> None:
        """SIGTERM, once, without a wait: several that are asked before they are stopped end side by side."""
        if self._asked_at is None and self.process is not None and self.process.poll() is None:
            self._asked_at = time.monotonic()
            self.process.terminate()

    def stop(self, say: Callable[[str], None] | None = None) -> None:
        """SIGTERM, perhaps a second one, then SIGKILL, for its whole group: no work horse stays behind.

        Args:
            say: told what is waited for, one line each.
        """
        process = self.process
        if process is None or process.poll() is not None:
            return
        self.ask()
        for until_s, news, then in self._patience():
            deadline = (self._asked_at or 0.0) + until_s
            while time.monotonic() < deadline and not _has_ended(process.pid):
                time.sleep(0.02)
            if _has_ended(process.pid):
                break
            if say is not None:
                say(news)
            if then is not None:
                process.send_signal(then)
        # it is not reaped yet, so its process id, which is the group's, cannot be anyone else's
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _patience(self) -> list[tuple[float, str, signal.Signals | None]]:
        """(seconds after the first SIGTERM, what to say then, what to send then), in their order."""
        last = self.grace_s if self.insist_s is None else self.insist_s
        stages: list[tuple[float, str, signal.Signals | None]] = []
        if last > _PROMPT_S:
            stages.append(
                (_PROMPT_S, f"waiting for the {self.name}, which finishes {self.finishing}: {last:.0f} s at most", None)
            )
        if self.insist_s is not None:
            news = f"the {self.name} is told again: what it is at is given back unfinished"
            stages.append((self.insist_s, news, signal.SIGTERM))
        return [*stages, (self.grace_s, f"the {self.name} does not end: it is killed", None)]

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
