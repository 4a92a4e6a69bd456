"""Decide the gates of a job, store them, and stop the study where one says NO-GO."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from compress_core.analyze import GateResult, GateThresholds, Verdict
from results_db.clock import utc_now
from results_db.ids import new_id
from results_db.params import GateParams
from results_db.queue.promote import skip_rest_of_study
from results_db.states import StudyState
from results_db.tables import Gate, Job, Study
from server.gates.decide import CRITERIA
from server.gates.evidence import Evidence


def decide_gates(session: Session, study: Study, params: GateParams) -> list[tuple[str, GateResult]]:
    """(question, result) of every gate that the job names; reads only."""
    thresholds = GateThresholds.from_dict(study.config.get("gates"))
    evidence = Evidence(session, params.context)
    return [
        (CRITERIA[name].question, CRITERIA[name].decide(evidence, thresholds, params.phase)) for name in params.gates
    ]


def save_gates(session: Session, study: Study, job: Job, decided: list[tuple[str, GateResult]]) -> dict[str, str]:
    """Store the verdicts; a gate decided before is decided anew. Returns name → verdict.

    A NO-GO stops the study unless it says ``on_no_go: continue``: what has not begun is skipped.
    """
    verdicts: dict[str, str] = {}
    refused: GateResult | None = None
    # rising ids keep the gates of a phase in the plan's order
    ids = sorted(new_id("gate") for _ in decided)
    for gate_id, (question, result) in zip(ids, decided, strict=True):
        _store(session, study, job, gate_id, question, result)
        verdicts[result.name] = result.verdict.value
        if result.verdict is Verdict.NO_GO and refused is None:
            refused = result
    if refused is not None and study.on_no_go == "stop" and study.state == StudyState.RUNNING:
        why = (
            f"gate {refused.name} of phase {refused.phase} says NO-GO: {refused.detail} "
            f"The plan's fallback: {refused.fallback}"
        )
        study.state = StudyState.STOPPED.value
        study.reason = why
        skip_rest_of_study(session, study.id, why)
    session.flush()
    return verdicts


def _store(session: Session, study: Study, job: Job, gate_id: str, question: str, result: GateResult) -> None:
    gate = session.scalar(
        select(Gate).where(Gate.study_id == study.id, Gate.phase == result.phase, Gate.name == result.name)
    )
    if gate is None:
        gate = Gate(id=gate_id, study_id=study.id, phase=result.phase, name=result.name)
        session.add(gate)
    values = result.to_dict()
    gate.job_id = job.id
    gate.question = question
    gate.verdict = values["verdict"]
    gate.value = values["value"]
    gate.threshold = values["threshold"]
    gate.ci_low = values["low"]
    gate.ci_high = values["high"]
    gate.unit = values["unit"] or None
    gate.explanation = values["detail"]
    gate.fallback = values["fallback"]
    gate.needed_samples = values["needed_samples"]
    gate.created_at = utc_now()
