"""Progress of split sweeps: a whole that waits for its parts shows what they have done and what is left."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from results_db.queries.parts import layers_summary, parts_among
from results_db.queue.events import record_event
from results_db.states import JobKind, JobState
from results_db.tables import Job, Sweep

#: a whole, its new progress, its parts
_Tally = tuple[Job, dict[str, Any], Sequence[Job]]


def has_news(session: Session) -> bool:
    """Whether the parts of some waiting sweep have done something that it does not show yet."""
    return bool(_news(session))


def tally_sweeps(session: Session) -> int:
    """Write the progress of every waiting sweep that is split, with its event; the number that changed."""
    news = _news(session)
    for whole, progress, parts in news:
        whole.progress = progress
        if whole.started_at is None:
            whole.started_at = min((part.started_at for part in parts if part.started_at), default=None)
        record_event(session, whole, "progress", payload=progress)
    return len(news)


def whole_progress(parts: Sequence[Job], n_cells: int) -> dict[str, Any]:
    """{"done", "total", "message", "eta_s"} of all parts together.

    The time to go: the cells that are left, at the mean pace of the parts that measured something (a reused cell
    costs nothing and says nothing), shared by as many workers as have a part now.
    """
    done = sum(_done(part) for part in parts)
    running = sum(part.state == JobState.RUNNING for part in parts)
    paces = [pace for part in parts if (pace := _seconds_per_cell(part)) is not None]
    left = max(0, n_cells - done)
    eta = left * sum(paces) / len(paces) / max(1, running) if paces and left else None if left else 0.0
    return {
        "done": min(done, n_cells),
        "total": n_cells,
        "message": layers_summary([part.state for part in parts]),
        "eta_s": None if eta is None else round(eta, 1),
    }


def _news(session: Session) -> list[_Tally]:
    waiting = select(Job).where(Job.state == JobState.WAITING.value, Job.kind == JobKind.SWEEP.value)
    found: list[_Tally] = []
    for whole in session.scalars(waiting).all():
        if not whole.depends_on:
            continue
        parts = parts_among(whole, session.scalars(select(Job).where(Job.id.in_(whole.depends_on))))
        # the first part that reports writes the sweep's row: before it nobody knows how many cells there are
        n_cells = session.scalar(select(Sweep.n_cells).where(Sweep.job_id == whole.id)) if parts else None
        if n_cells is None:
            continue
        progress = whole_progress(parts, n_cells)
        if progress != whole.progress:
            found.append((whole, progress, parts))
    return found


def _done(part: Job) -> int:
    if part.state == JobState.SUCCEEDED and part.result is not None:
        return int(part.result["n_cells"])
    return int((part.progress or {}).get("done") or 0)


def _seconds_per_cell(part: Job) -> float | None:
    """Of a part that has ended, what its cells took; of one that runs, what it thinks itself."""
    if part.state == JobState.SUCCEEDED and part.result and part.started_at and part.finished_at:
        n = int(part.result["recorded"])
        return (part.finished_at - part.started_at) / timedelta(seconds=1) / n if n else None
    progress = part.progress or {}
    if part.state == JobState.RUNNING and progress.get("eta_s") is not None and progress["total"] > progress["done"]:
        return float(progress["eta_s"]) / (int(progress["total"]) - int(progress["done"]))
    return None
