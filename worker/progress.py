"""Progress of a job: done of total, one line of text, and an honest time to go."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

from compress_core.errors import Interrupted
from worker.stop import StopRequest


class ProgressMeter:
    """The progress callback of compress_core; raises Interrupted once somebody wants the job to stop.

    The time to go is the mean of two rates, the whole run's and the recent one: the first is steady where units of
    different cost repeat, the second follows a change. Units that were reused cost nothing and count in neither.
    Thread-safe: the heartbeat reads what the job's thread writes.
    """

    def __init__(self, stop: StopRequest, clock: Callable[[], float] = time.monotonic) -> None:
        self._stop = stop
        self._clock = clock
        self._lock = threading.Lock()
        self._begun = False
        self._done = self._total = self._computed = 0
        self._message = ""
        self._spent = self._recent = 0.0
        self._last = clock()

    def begin(self, total: int, *, reused: int = 0, message: str = "") -> None:
        """A new stretch of work; ``reused`` of its units are done already."""
        with self._lock:
            self._start(total, reused, message)
        self.check()

    def __call__(self, done: int, total: int, message: str) -> None:
        with self._lock:
            if not self._begun or total != self._total or done < self._done:
                self._start(total, 0, message)
            self._advance(done, message)
        self.check()

    def note(self, message: str) -> None:
        """Say what is being done where no unit of work is; its time counts for the next unit."""
        with self._lock:
            self._message = message
        self.check()

    def check(self) -> None:
        """Stop here if somebody wants that.

        Raises:
            Interrupted: cancel, pause or shutdown was asked for.
        """
        if self._stop.reason is not None:
            raise Interrupted(f"stopped: {self._stop.reason} was asked for")

    def snapshot(self) -> dict[str, Any] | None:
        """{"done", "total", "message", "eta_s"}; None before anything was said."""
        with self._lock:
            if not self._begun:
                return None
            return {"done": self._done, "total": self._total, "message": self._message, "eta_s": self._eta()}

    def _start(self, total: int, done: int, message: str) -> None:
        self._begun = True
        self._done, self._total, self._message = done, total, message
        self._computed, self._spent, self._recent = 0, 0.0, 0.0
        self._last = self._clock()

    def _advance(self, done: int, message: str) -> None:
        now = self._clock()
        units, seconds = done - self._done, now - self._last
        self._message = message
        if units <= 0:
            return
        each = seconds / units
        # the recent rate forgets over a tenth of the run, but over five units at least
        keep = math.exp(-units / max(5.0, 0.1 * self._total)) if self._computed else 0.0
        self._recent = keep * self._recent + (1 - keep) * each
        self._computed += units
        self._spent += seconds
        self._done, self._last = done, now

    def _eta(self) -> float | None:
        left = self._total - self._done
        if left <= 0:
            return 0.0
        if not self._computed:
            return None
        each = (self._spent / self._computed + self._recent) / 2
        return round(max(0.0, left * each - (self._clock() - self._last)), 1)
