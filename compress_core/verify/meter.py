"""Meter: progress in thousandths of a work whose parts have different costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress_core.progress import Progress

#: units of progress of the whole work
THOUSANDTHS = 1000


@dataclass
class Meter:
    """Where a pass over the layers has come to."""

    progress: Progress
    #: of each layer, and of what comes after the last; any unit
    costs: Sequence[float]
    #: cost of what is done
    done: float = 0.0

    def begin(self, layer_idx: int) -> None:
        """Everything before this layer is done."""
        self.done = sum(self.costs[:layer_idx])

    def at(self, part: float = 0.0) -> tuple[int, int]:
        """(done, total) of progress, with so much of the next piece's cost done."""
        share = (self.done + part) / sum(self.costs)
        return min(THOUSANDTHS, int(THOUSANDTHS * share + 1e-9)), THOUSANDTHS

    def tell(self, message: str, part: float = 0.0) -> None:
        """Say what is being done; may raise Interrupted."""
        self.progress(*self.at(part), message)

    def add(self, cost: float, message: str) -> None:
        """A piece of this cost is done."""
        self.done += cost
        self.tell(message)
