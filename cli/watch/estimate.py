"""When will the study end? From what its steps have taken so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cli.output import parse_time

#: what a step of a kind costs in relation to others (seconds of the demo on two cores). Only the ratios matter, and
#: only until a step of the kind has been measured.
_TYPICAL = {
    "fetch": 60.0,
    "calibrate": 8.0,
    "sensitivity": 64.0,
    "sweep": 170.0,
    "compress": 20.0,
    "evaluate": 30.0,
    "fit": 1.0,
    "allocate": 1.0,
    "gate": 0.5,
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
    how this machine compares so far.
    """
    took: dict[str, list[float]] = defaultdict(list)
    for job in jobs:
        if job["state"] == "succeeded":
            took[job["kind"]].append(seconds_of(job, now))
    expected = sum(_TYPICAL.get(kind, 1.0) * len(times) for kind, times in took.items())
    running = [job for job in jobs if job["state"] == "running"]
    measured = sum(map(sum, took.values()))
    for job in running:
        measured += seconds_of(job, now)
        expected += _TYPICAL.get(job["kind"], 1.0) * fraction(job)
    if not expected or not measured:
        return None
    pace = measured / expected

    def whole(kind: str) -> float:
        return sum(took[kind]) / len(took[kind]) if took[kind] else pace * _TYPICAL.get(kind, 1.0)

    left = 0.0
    for job in jobs:
        if job["state"] in FINISHED:
            continue
        own = (job.get("progress") or {}).get("eta_s") if job["state"] == "running" else None
        left += own if own is not None else whole(job["kind"]) * (1 - fraction(job))
    return left


def overall_fraction(jobs: Sequence[Mapping[str, Any]]) -> float:
    """How much of the work is done, 0 to 1, each kind weighed by its typical cost."""
    total = sum(_TYPICAL.get(job["kind"], 1.0) for job in jobs)
    done = sum(_TYPICAL.get(job["kind"], 1.0) * fraction(job) for job in jobs)
    return done / total if total else 0.0
