"""Progress and its time to go, on a clock that the test moves."""

from __future__ import annotations

import pytest

from compress_core.errors import Interrupted
from worker.progress import ProgressMeter
from worker.stop import StopRequest


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> ProgressMeter:
    return ProgressMeter(StopRequest(), clock)


def eta(meter: ProgressMeter) -> float | None:
    snapshot = meter.snapshot()
    assert snapshot is not None
    return snapshot["eta_s"]  # type: ignore[no-any-return]


def test_nothing_said_yet(meter: ProgressMeter) -> None:
    assert meter.snapshot() is None


def test_a_steady_rate(meter: ProgressMeter, clock: Clock) -> None:
    meter(0, 10, "begin")
    assert eta(meter) is None
    for done in range(1, 6):
        clock.now += 2.0
        meter(done, 10, f"unit {done}")
    assert meter.snapshot() == {"done": 5, "total": 10, "message": "unit 5", "eta_s": pytest.approx(10.0)}
    clock.now += 1.0
    assert eta(meter) == pytest.approx(9.0), "it counts down between units"
    clock.now += 100.0
    assert eta(meter) == 0.0


def test_the_end(meter: ProgressMeter, clock: Clock) -> None:
    meter(0, 2, "")
    clock.now += 1
    meter(2, 2, "")
    assert eta(meter) == 0.0


def test_reused_units_do_not_distort_the_rate(meter: ProgressMeter, clock: Clock) -> None:
    meter.begin(1000, reused=900, message="900 are known")
    assert eta(meter) is None
    for done in range(901, 911):
        clock.now += 3.0
        meter(done, 1000, "")
    assert eta(meter) == pytest.approx(270.0)


def test_a_change_of_pace_shows(meter: ProgressMeter, clock: Clock) -> None:
    meter(0, 200, "")
    for done in range(1, 51):
        clock.now += 1.0
        meter(done, 200, "")
    for done in range(51, 101):
        clock.now += 4.0
        meter(done, 200, "")
    # the mean of all is 2.5 s, of the recent ones nearly 4 s
    assert 300 < (eta(meter) or 0) < 340


def test_a_new_stretch_begins_anew(meter: ProgressMeter, clock: Clock) -> None:
    meter(0, 2, "first")
    clock.now += 50
    meter(2, 2, "first")
    meter(0, 4, "second")
    assert eta(meter) is None
    clock.now += 1
    meter(1, 4, "second")
    assert eta(meter) == pytest.approx(3.0)


@pytest.mark.parametrize("reason", ["cancel", "pause", "shutdown"])
def test_it_stops_when_somebody_asks(clock: Clock, reason: str) -> None:
    stop = StopRequest()
    meter = ProgressMeter(stop, clock)
    meter(1, 3, "")
    stop.ask(reason)
    stop.ask("something else")
    with pytest.raises(Interrupted, match=reason):
        meter(2, 3, "")
    snapshot = meter.snapshot()
    assert snapshot is not None
    assert snapshot["done"] == 2, "what was done is told before the stop"
