"""What the steps of a study made: ids by step, and what the study's models are called."""

from __future__ import annotations

from collections.abc import Iterable

from results_db.queries.parts import part_of
from results_db.states import JobKind
from results_db.tables import Job

_LABELS = {
    "original": "original",
    "optimal": "optimal",
    "reanchored": "optimal, re-anchored",
    "chosen": "optimal, re-anchored",
    "uniform": "best uniform",
    "rank0": "rank 0, optimal",
    "rtn": "round-to-nearest",
    "gptq": "GPTQ",
}


def step_label(job: Job) -> str:
    """``compress:optimal`` → ``compress · optimal``."""
    return (job.step or job.kind).replace(":", " · ")


def model_label(name: str, *, several: bool) -> str:
    """``uniform@2`` → ``best uniform · budget 2``; with several budgets the first is named too."""
    base, _, budget = name.partition("@")
    has_budget = several and base != "original"
    return _LABELS.get(base, base) + (f" · budget {budget or 1}" if has_budget else "")


def several_budgets(jobs: Iterable[Job]) -> bool:
    """Whether the study has more than one budget."""
    return any("@" in (job.step or "") for job in jobs)


def first_of(jobs: Iterable[Job], kind: JobKind) -> Job | None:
    """The first job of a kind; a split one stands for its parts."""
    return next((job for job in jobs if job.kind == kind and part_of(job.params) is None), None)


def results(jobs: Iterable[Job], kind: JobKind, key: str) -> dict[str, str]:
    """Step → id of what the job made, for jobs that have a result."""
    return {
        job.step or job.id: job.result[key]
        for job in jobs
        if job.kind == kind and job.result and job.result.get(key) is not None
    }
