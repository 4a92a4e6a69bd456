"""Time to go, from what the steps have taken so far."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cli.watch.estimate import fraction, overall_fraction, remaining_seconds

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def job(kind: str, state: str, seconds: float | None = None, **progress: Any) -> dict[str, Any]:
    started = None if seconds is None else NOW - timedelta(seconds=seconds)
    return {
        "kind": kind,
        "state": state,
        "started_at": started and started.isoformat(),
        "finished_at": NOW.isoformat() if state == "succeeded" else None,
        "progress": progress or None,
    }


def test_nothing_known_is_said_to_be_unknown() -> None:
    assert remaining_seconds([job("sweep", "queued"), job("fit", "waiting")], NOW) is None


def test_a_kind_that_was_measured_is_taken_at_its_mean() -> None:
    jobs = [job("compress", "succeeded", 10), job("compress", "succeeded", 20), job("compress", "waiting")]
    assert remaining_seconds(jobs, NOW) == pytest.approx(15)


def test_a_running_jobs_own_estimate_comes_first() -> None:
    jobs = [job("sweep", "running", 30, done=10, total=100, eta_s=99.0), job("compress", "succeeded", 10)]
    assert remaining_seconds(jobs, NOW) == pytest.approx(99)


def test_a_kind_not_yet_seen_follows_the_pace_of_the_others() -> None:
    slow = remaining_seconds([job("compress", "succeeded", 60), job("sweep", "waiting")], NOW)
    fast = remaining_seconds([job("compress", "succeeded", 6), job("sweep", "waiting")], NOW)
    assert slow == pytest.approx(10 * fast)  # type: ignore[operator]


def test_first_steps_of_a_running_job_say_nothing_of_other_kinds() -> None:
    """The first of many small steps compiles what all of them use."""
    jobs = [job("calibrate", "succeeded", 15), job("sensitivity", "running", 100, done=1, total=100, eta_s=9_900.0)]
    assert remaining_seconds([*jobs, job("sweep", "waiting")], NOW) == pytest.approx(9_900 + 122)


def test_steps_on_a_condition_count_when_it_is_met() -> None:
    def step(id_: str, kind: str, state: str, **more: Any) -> dict[str, Any]:
        return job(kind, state) | {"id": id_, "run_when": "succeeded", "depends_on": [], "inputs": {}} | more

    jobs = [
        job("calibrate", "succeeded", 15) | {"id": "c"},
        step("s", "sensitivity", "waiting", inputs={"only_if": {"job": "v", "key": "reanchor"}}, position=1),
        step("v", "validate", "waiting", depends_on=["s"], position=2),
        # takes what is there when the others have ended
        step("e", "evaluate", "waiting", depends_on=["s", "v"], run_when="finished", position=3),
    ]
    assert remaining_seconds(jobs, NOW) == pytest.approx(17)
    assert overall_fraction(jobs) == pytest.approx(15 / 32)
    jobs[1]["state"] = "queued"
    assert remaining_seconds(jobs, NOW) == pytest.approx(385 + 184 + 17)


def test_nothing_left_takes_no_time() -> None:
    jobs = [job("compress", "succeeded", 10), job("sweep", "skipped"), job("fit", "failed")]
    assert remaining_seconds(jobs, NOW) == 0
    assert overall_fraction(jobs) == 1


@pytest.mark.parametrize(
    ("progress", "expected"), [({}, 0), ({"done": 3, "total": 0}, 0), ({"done": 1, "total": 4}, 0.25)]
)
def test_fraction(progress: dict[str, int], expected: float) -> None:
    assert fraction(job("sweep", "running", 1, **progress)) == expected
