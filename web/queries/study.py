"""A study as its page shows it: phases with their jobs and gates, what runs now, and the headline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from results_db.clock import utc_now
from results_db.states import TERMINAL, JobState
from results_db.tables import Gate, Job, Model, Study
from web.headline import Headline, headlines
from web.queries.actions import Action, study_actions
from web.queries.figure_rows import figure_versions
from web.queries.jobs import JobLine, job_line, last_event_id, with_parts
from web.queries.stale import Stale, stale_of

#: the plan's phases
PHASES = {
    0: "Pilot",
    1: "Error sweep",
    2: "Error model",
    3: "Allocation",
    4: "Compress and compare",
    5: "Evaluation",
    6: "Paper",
}


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase with its steps in order."""

    number: int | None
    title: str
    jobs: tuple[JobLine, ...]

    @property
    def n_ended(self) -> int:
        return sum(JobState(job.state) in TERMINAL for job in self.jobs)


@dataclass(frozen=True, slots=True)
class StudyLine:
    """One study in the list."""

    study: Study
    model_name: str
    n_jobs: int
    n_ended: int
    fraction: float
    #: the phase of the first step that has not ended
    phase: str | None
    headline: Headline | None


@dataclass(frozen=True, slots=True)
class StudyPage:
    """Everything above the figures."""

    study: Study
    model: Model | None
    line: StudyLine
    phases: tuple[Phase, ...]
    gates: tuple[Gate, ...]
    running: tuple[JobLine, ...]
    headlines: tuple[Headline, ...]
    stale: Stale
    #: what a person may do to it now
    actions: tuple[Action, ...]
    #: of each figure: equal as long as its rows are
    versions: dict[str, str]
    last_event_id: int

    @property
    def summary(self) -> str:
        """One sentence for a screen reader; changes only when a step changes its state."""
        now = ", ".join(job.label for job in self.running)
        steps = f"{self.line.n_ended} of {self.line.n_jobs} steps ended"
        return f"Study {self.study.state}: {steps}" + (f"; running {now}." if now else ".")


def phase_title(number: int | None) -> str:
    """``Phase 1: Error sweep``."""
    return "Other steps" if number is None else f"Phase {number}: {PHASES.get(number, 'unnamed')}"


def study_lines(session: Session, limit: int = 50) -> tuple[StudyLine, ...]:
    """The newest studies."""
    rows = session.execute(
        select(Study, Model.name).outerjoin(Model, Model.id == Study.model_id).order_by(Study.id.desc()).limit(limit)
    ).all()
    jobs: dict[str, list[Job]] = {study.id: [] for study, _ in rows}
    for job in session.scalars(select(Job).where(Job.study_id.in_(list(jobs))).order_by(Job.position, Job.id)):
        jobs[str(job.study_id)].append(job)
    return tuple(_study_line(study, name or study.model_id, jobs[study.id]) for study, name in rows)


def study_page(session: Session, study_id: str) -> StudyPage | None:
    """None: no such study."""
    last = last_event_id(session)
    study = session.get(Study, study_id)
    if study is None:
        return None
    model = session.get(Model, study.model_id)
    jobs = session.scalars(select(Job).where(Job.study_id == study_id).order_by(Job.position, Job.id)).all()
    gates = session.scalars(select(Gate).where(Gate.study_id == study_id).order_by(Gate.phase, Gate.id)).all()
    now = utc_now()
    stale = stale_of(session, [job.id for job in jobs])
    lines = [
        (job.phase, job_line(job, now=now, parts=parts, stale=stale.by_job.get(job.id)))
        for job, parts in with_parts(jobs)
    ]
    numbers = sorted({phase for phase, _ in lines}, key=lambda p: (p is None, p or 0))
    return StudyPage(
        study=study,
        model=model,
        line=_study_line(study, model.name if model else study.model_id, list(jobs)),
        phases=tuple(Phase(n, phase_title(n), tuple(line for phase, line in lines if phase == n)) for n in numbers),
        gates=tuple(gates),
        running=tuple(line for _, line in lines if line.state == JobState.RUNNING),
        headlines=headlines(study.headline),
        stale=stale,
        actions=study_actions(study, jobs, stale=bool(stale)),
        versions=figure_versions(session, study, list(jobs)),
        last_event_id=last,
    )


def _study_line(study: Study, model_name: str, jobs: list[Job]) -> StudyLine:
    steps = [job for job, _ in with_parts(jobs)]
    lines = [job_line(job, parts=parts) for job, parts in with_parts(jobs)]
    ended = [JobState(line.state) in TERMINAL for line in lines]
    shares: list[Any] = [1.0 if done else line.fraction for done, line in zip(ended, lines, strict=True)]
    open_jobs = [job for job, done in zip(steps, ended, strict=True) if not done]
    first = headlines(study.headline)
    return StudyLine(
        study=study,
        model_name=model_name,
        n_jobs=len(lines),
        n_ended=sum(ended),
        fraction=sum(shares) / len(shares) if shares else 0.0,
        phase=phase_title(open_jobs[0].phase) if open_jobs else None,
        headline=first[0] if first else None,
    )
