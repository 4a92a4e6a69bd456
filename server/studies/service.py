"""Start, describe and cancel studies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from compress_core.matrix import MatrixSpec
from compress_core.nbytes import predicted_nbytes
from results_db.ids import new_id
from results_db.params import PARAMS
from results_db.queue.submit import cancel_job, submit_job
from results_db.queue.transitions import lock_study
from results_db.settings import Settings
from results_db.states import TERMINAL, JobState, StudyState
from results_db.tables import Gate, Job, Model, Study
from server.allocations.budget import budget_bytes
from server.kit.checks import check_text
from server.kit.problem import Problem, invalid
from server.kit.rows import get_row
from server.models.schemas import ModelRequest
from server.models.service import Inspected, inspect_source, model_specs, original_matrix_bytes, register_model
from server.studies.plan import plan_study, resolved_budgets
from server.studies.schemas import StudyConfig
from server.studies.steps import Step


def _check_held_out(config: StudyConfig) -> None:
    """A whole file is held out only where nothing else of the study is drawn from it.

    Raises:
        Problem: the built-in text, or the study's own, is asked for as a whole.
    """
    for i, dataset in enumerate(config.datasets):
        if dataset.split == "whole" and (dataset.kind == "stdlib" or dataset.identity == config.text.identity):
            raise invalid(
                f"evaluation.datasets.{i}.split",
                "this text also calibrates the study: take its report split, or another file as a whole",
            )


def check_study(config: StudyConfig, settings: Settings) -> tuple[StudyConfig, Inspected]:
    """The config with text paths absolute, and its model looked at; before any transaction.

    Raises:
        Problem, PathNotAllowed, CheckpointError: something that it names is not there or not allowed.
    """
    evaluation = config.evaluation
    if evaluation.datasets is not None:
        datasets = [
            check_text(text, settings, f"evaluation.datasets.{i}") for i, text in enumerate(evaluation.datasets)
        ]
        evaluation = evaluation.model_copy(update={"datasets": datasets})
    checked = config.model_copy(update={"text": check_text(config.text, settings, "text"), "evaluation": evaluation})
    _check_held_out(checked)
    model = config.model
    try:
        inspected = inspect_source(
            ModelRequest(source=model.source, revision=model.revision, name=model.name), settings
        )
    except Problem as problem:
        raise _within(problem, "model") from problem
    return checked, inspected


def start_study(session: Session, config: StudyConfig, inspected: Inspected) -> Study:
    """Write the study and every step of it as a job, in one transaction.

    Raises:
        Problem: infeasible-budget, where the shapes are known already.
    """
    model, _, _ = register_model(session, inspected, fetch=False)
    fetch = model.local_path is None
    if not fetch:
        _check_budgets(config, model)
    steps = plan_study(config, model.id, fetch=fetch)
    study = Study(
        id=new_id("study"),
        name=config.name,
        model_id=model.id,
        state=StudyState.RUNNING.value,
        config=config.model_dump(mode="json"),
        on_no_go=config.on_no_go,
    )
    session.add(study)
    session.flush()
    _submit(session, study, steps)
    return study


def describe_study(session: Session, study: Study) -> dict[str, Any]:
    """The study with its jobs in order and its gates."""
    jobs = session.scalars(select(Job).where(Job.study_id == study.id).order_by(Job.position)).all()
    gates = session.scalars(select(Gate).where(Gate.study_id == study.id).order_by(Gate.phase, Gate.id)).all()
    return study.as_dict() | {"jobs": [job.as_dict() for job in jobs], "gates": [gate.as_dict() for gate in gates]}


def cancel_study(session: Session, study_id: str) -> Study:
    """Cancel every job that has not ended; a running one stops at its next heartbeat.

    Raises:
        Problem: wrong-state: the study has ended.
    """
    study = lock_study(session, study_id)
    if study.finished_at is not None:
        raise Problem(409, "wrong-state", f"study {study.id} has ended ({study.state}): there is nothing to cancel")
    study.state = StudyState.CANCELLED.value
    study.reason = "cancelled by a person"
    session.flush()
    # from the end, so that nothing is promoted or skipped in between
    jobs = session.scalars(select(Job).where(Job.study_id == study.id).order_by(Job.position.desc())).all()
    for job in jobs:
        if JobState(job.state) not in TERMINAL:
            cancel_job(session, job.id)
    return study


def ended_study(session: Session, study_id: str) -> dict[str, Any] | None:
    """The study once all its jobs have ended, else None."""
    study = get_row(session, Study, study_id)
    return study.as_dict() if study.finished_at is not None else None


def _submit(session: Session, study: Study, steps: Sequence[Step]) -> None:
    ids: dict[str, str] = {}
    for position, step in enumerate(steps):
        params = step.params | ({"context": _resolve(step.context, ids)} if step.context else {})
        # what is wrong here would fail hours later
        PARAMS[step.kind].model_validate(params | step.placeholders())
        job = submit_job(
            session,
            step.kind,
            params,
            study_id=study.id,
            step=step.name,
            phase=step.phase,
            position=position,
            depends_on=[ids[name] for name in step.depends_on],
            inputs=step.stored_inputs(ids),
            run_when=step.run_when,
        )
        ids[step.name] = job.id


def _resolve(context: dict[str, Any], ids: dict[str, str]) -> dict[str, Any]:
    """Step names to job ids."""
    return {key: _resolve(value, ids) if isinstance(value, dict) else ids[value] for key, value in context.items()}


def _check_budgets(config: StudyConfig, model: Model) -> None:
    specs = model_specs(model)
    outside = (model.fixed_bytes or 0) if config.scope == "model" else 0
    smallest = outside + sum(_smallest(spec, config) for spec in specs)
    for position, budget in enumerate(resolved_budgets(config)):
        given = budget_bytes(budget, specs, outside=outside, original_matrix_bytes=original_matrix_bytes(model))
        if given < smallest:
            raise invalid(
                f"budgets.{position}",
                f"{given:,} bytes are below the {smallest:,} bytes that the grid's smallest configs take in scope "
                f"{config.scope}: allow at least that, or add smaller configs to the grid",
                slug="infeasible-budget",
                smallest_bytes=smallest,
            )


def _smallest(spec: MatrixSpec, config: StudyConfig) -> int:
    out, in_ = spec.out_features, spec.in_features
    return min(predicted_nbytes(c.clamped(out, in_), out, in_) for c in config.grid.configs())


def _within(problem: Problem, section: str) -> Problem:
    """The same problem, its fields seen from the whole config."""
    errors = [e | {"field": f"{section}.{e['field']}"} for e in problem.extra.get("errors", [])]
    return Problem(problem.status, problem.slug, f"{section}.{problem.detail}", **(problem.extra | {"errors": errors}))
