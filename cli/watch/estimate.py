"""When will the study end? From what its steps have taken so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cli.output import parse_time

#: what a step of a kind costs in relation to others (seconds of the demo on two cores, steps that only found their
#: result there counted in). Only the ratios matter, and only until a step of the kind has been measured.
_TYPICAL = {
    "fetch": 60.0,
    "calibrate": 15.0,
    "sensitivity": 385.0,
    "sweep": 122.0,
    "validate": 184.0,
    "compress": 14.0,
    "evaluate": 17.0,
    "fit": 2.0,
    "allocate": 0.3,
    "gate": 0.1,
}
FINISHED = frozenset({"succeeded", "failed", "cancelled", "dead", "skipped"})


def fraction(job: Mapping[str, Any]) -> float:
    """How much of a job is done, 0 to 1."""
    if job["state"] in FINISHED:
        return 1.0
    progress = job.get("progress") or {}
    return min(1.0, progress.get("done", 0) / progress["total"]) if progress.get("total") else 0.0


def seconds_of(job: Mapping[str, Any], now: datetime | None = None) -> float:
    """How long a job has run, or ran."""
    started = parse_time(job.get("started_at"))
    if started is None:
        return 0.0
    ended = parse_time(job.get("finished_at")) or now or datetime.now(UTC)
    return max(0.0, (ended - started).total_seconds())


def remaining_seconds(jobs: Sequence[Mapping[str, Any]], now: datetime | None = None) -> float | None:
    """Seconds until the last of ``jobs`` ends if they run one after another; None while nothing is known.

    A running job's own estimate comes first, then the mean of finished jobs of its kind, then typical costs scaled by
    how this machine compares so far. Steps that run only on a condition count when it is met.
    """
    took: dict[str, list[float]] = defaultdict(list)
    for job in jobs:
        if job["state"] == "succeeded":
            took[job["kind"]].append(seconds_of(job, now))
    expected = sum(_TYPICAL.get(kind, 1.0) * len(times) for kind, times in took.items())
    measured = sum(map(sum, took.values()))
    if not measured:
        # how far a running job is says little of its time: first steps may be the slowest
        for job in jobs:
            if job["state"] == "running":
                measured += seconds_of(job, now)
                expected += _TYPICAL.get(job["kind"], 1.0) * fraction(job)
    if not expected or not measured:
        return None
    pace = measured / expected

    def whole(kind: str) -> float:
        return sum(took[kind]) / len(took[kind]) if took[kind] else pace * _TYPICAL.get(kind, 1.0)

    left, perhaps = 0.0, _conditional(jobs)
    for job in jobs:
        if job["state"] in FINISHED or job.get("id") in perhaps:
            continue
        own = (job.get("progress") or {}).get("eta_s") if job["state"] == "running" else None
        left += own if own is not None else whole(job["kind"]) * (1 - fraction(job))
    return left


def overall_fraction(jobs: Sequence[Mapping[str, Any]]) -> float:
    """How much of the work is done, 0 to 1, each kind weighed by its typical cost."""
    perhaps = _conditional(jobs)
    weights = [0.0 if job.get("id") in perhaps else _TYPICAL.get(job["kind"], 1.0) for job in jobs]
    done = sum(weight * fraction(job) for weight, job in zip(weights, jobs, strict=True))
    return done / sum(weights) if sum(weights) else 0.0


def _conditional(jobs: Sequence[Mapping[str, Any]]) -> set[str]:
    """Ids of the steps that wait for a condition, and of those that run only after them."""
    found: set[str] = set()
    for job in sorted(jobs, key=lambda job: job.get("position") or 0):
        needs = job.get("run_when") == "succeeded" and found & set(job.get("depends_on") or ())
        if job["state"] == "waiting" and (needs or "only_if" in (job.get("inputs") or {})):
            found.add(job["id"])
    return found
