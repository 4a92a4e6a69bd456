"""How long a job waits before it is tried again: exponential, with full jitter."""

from __future__ import annotations

import random
from dataclasses import dataclass

#: 2**60 times any base is beyond every cap
_MOST_DOUBLINGS = 60


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between the attempts of one job.

    After the n-th failure the wait is drawn evenly from 0 to ``base_s`` · 2^(n−1) seconds, at most ``cap_s``: jobs that
    failed together, since the database or a store was away, do not come back together.
    """

    base_s: float = 5.0
    cap_s: float = 300.0

    def longest_s(self, failures: int) -> float:
        """The longest wait after so many failures; 0 after none."""
        if failures < 1:
            return 0.0
        return min(self.cap_s, self.base_s * 2.0 ** min(failures - 1, _MOST_DOUBLINGS))

    def draw_s(self, failures: int) -> float:
        """A wait."""
        return random.uniform(0.0, self.longest_s(failures))  # noqa: S311 - jitter, no secret
