"""A way to end a query from another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stop:
    """Ends what runs under it, once, whenever it is asked: before, during, or not at all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._action: Callable[[], None] | None = None
        self.requested = False

    def request(self) -> None:
        """End the query; without one that runs, end the next."""
        with self._lock:
            self.requested = True
            action = self._action
        if action is not None:
            action()

    @contextmanager
    def ends_by(self, action: Callable[[], None]) -> Iterator[None]:
        """Within the block a request calls ``action``, which may be called from any thread and must not raise."""
        with self._lock:
            self._action = action
            late = self.requested
        if late:
            action()
        try:
            yield
        finally:
            with self._lock:
                self._action = None
