"""A sweep that is split: one whole job, and one part job a layer whose cells belong to the whole's sweep.

A part names its whole in ``params["part_of"]``; the whole waits for its parts (``depends_on``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from results_db.states import JobKind, JobState
from results_db.tables import Job


def part_of(params: dict[str, Any]) -> str | None:
    """The id of the whole, where these are the parameters of a part."""
    return params.get("part_of")


def layer_of(part: Job) -> int:
    """The layer that a part measures."""
    return int(part.params["matrices"]["layers"][0])


def layers_summary(states: Sequence[str]) -> str:
    """``3 of 28 layers, 1 failed``: how many parts succeeded, and which need a look."""
    amiss = (JobState.FAILED, JobState.DEAD, JobState.CANCELLED, JobState.PAUSED)
    counts = [f"{states.count(state)} {state.value}" for state in amiss if state in states]
    return ", ".join([f"{states.count(JobState.SUCCEEDED)} of {len(states)} layers", *counts])


def is_part() -> ColumnElement[bool]:
    """Condition: the job is a part of another."""
    return Job.params["part_of"].as_string().is_not(None)


def parts_among(whole: Job, jobs: Iterable[Job]) -> list[Job]:
    """The whole's parts, in the order of their layers."""
    return sorted((job for job in jobs if part_of(job.params) == whole.id), key=layer_of)


def parts_of(session: Session, whole: Job) -> list[Job]:
    """The same, read from the database; empty for a job that is not split."""
    if whole.kind != JobKind.SWEEP or not whole.depends_on:
        return []
    query = select(Job).where(Job.id.in_(whole.depends_on)).execution_options(populate_existing=True)
    return parts_among(whole, session.scalars(query))
