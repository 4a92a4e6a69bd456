"""The first page: studies, what runs and waits, workers, what ended lately."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from results_db.queue.control import queue_state
from results_db.states import TERMINAL, JobState
from results_db.tables import QueueControl, Worker
from web.queries.jobs import JobLine, job_lines, last_event_id
from web.queries.study import StudyLine, study_lines


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything on the first page."""

    studies: tuple[StudyLine, ...]
    running: tuple[JobLine, ...]
    queued: tuple[JobLine, ...]
    recent: tuple[JobLine, ...]
    workers: tuple[Worker, ...]
    switch: QueueControl
    last_event_id: int

    @property
    def summary(self) -> str:
        """One sentence for a screen reader."""
        up = sum(worker.state == "up" for worker in self.workers)
        paused = "The queue is paused. " if self.switch.paused_at else ""
        return f"{paused}{len(self.running)} running, {len(self.queued)} queued, {up} workers up."


def overview(session: Session) -> Overview:
    """Read in one transaction."""
    last = last_event_id(session)
    ended = [str(state) for state in TERMINAL if state != JobState.SKIPPED]
    workers = session.scalars(select(Worker).order_by(Worker.state.desc(), Worker.heartbeat_at.desc()).limit(20)).all()
    return Overview(
        studies=study_lines(session),
        running=job_lines(session, states=[JobState.RUNNING.value], limit=50, newest_first=False),
        queued=job_lines(session, states=[JobState.QUEUED.value, JobState.PAUSED.value], limit=20, newest_first=False),
        recent=job_lines(session, states=ended, limit=15),
        workers=tuple(workers),
        switch=queue_state(session),
        last_event_id=last,
    )
