"""A clock that waits for the device and tells apart what a piece of work takes and what the machine's load adds.

On a CPU a second is a second of the processor: with T threads, T of them are one second of an idle machine. Wall time
would say how busy the machine was just then; that is told once, as ``busy``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass
class Clock:
    """Seconds of pieces of work on one device."""

    device: torch.device
    wall: float = 0.0
    processor: float = 0.0

    def time(self, work: Callable[[], T]) -> tuple[T, float]:
        """What the work gives, and its seconds on a device that has nothing else to do."""
        self._wait()
        wall, processor = time.perf_counter(), time.process_time()
        result = work()
        self._wait()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        self.wall += wall
        self.processor += processor
        return result, processor / torch.get_num_threads() if self.device.type == "cpu" else wall

    def best(self, work: Callable[[], object], times: int) -> float:
        """Seconds of the fastest of several runs, after one that warms up."""
        work()
        return min(self.time(work)[1] for _ in range(times))

    @property
    def busy(self) -> float | None:
        """Processor seconds a wall second and thread; None on a card, whose work is not the processor's."""
        if self.device.type != "cpu" or self.wall <= 0:
            return None
        return self.processor / self.wall / torch.get_num_threads()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
