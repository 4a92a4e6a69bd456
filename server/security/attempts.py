"""Attempts: how often somebody may try a wrong token at /login."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

MOST_FAILURES = 10
WITHIN_S = 60.0
#: callers remembered; beyond, the one that failed longest ago is forgotten
_MOST_CALLERS = 1024


class Attempts:
    """Failures of each caller within the last minute, in this process's memory.

    256 bits are not guessed; this keeps a broken script from filling the log and the database's time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait_s(self, caller: str) -> float:
        """Seconds until the caller may try again; 0 = now."""
        with self._lock:
            failures = self._recent(caller)
            return max(0.0, failures[0] + WITHIN_S - self._clock()) if len(failures) >= MOST_FAILURES else 0.0

    def failed(self, caller: str) -> None:
        """The caller tried a wrong token."""
        with self._lock:
            failures = self._recent(caller)
            failures.append(self._clock())
            self._failures[caller] = failures
            self._failures.move_to_end(caller)
            while len(self._failures) > _MOST_CALLERS:
                self._failures.popitem(last=False)

    def worked(self, caller: str) -> None:
        """An attempt that was counted beforehand was none to count."""
        with self._lock:
            if failures := self._recent(caller):
                failures.pop()

    def _recent(self, caller: str) -> deque[float]:
        failures = self._failures.get(caller, deque(maxlen=MOST_FAILURES))
        while failures and failures[0] <= self._clock() - WITHIN_S:
            failures.popleft()
        return failures
