"""Decide the gates of a job, store them, and stop the study where one says NO-GO."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from compress_core.analyze import GateResult, GateThresholds, Verdict
from results_db.clock import utc_now
from results_db.ids import new_id
from results_db.params import GateParams
from results_db.queue.promote import skip_rest_of_study
from results_db.retire import count_retired, hold_measured
from results_db.stale import stale_evidence
from results_db.states import StudyState
from results_db.tables import Calibration, Gate, Job, Study
from server.gates.decide import CRITERIA
from server.gates.evidence import Evidence


@dataclass(frozen=True, slots=True)
class Decided:
    """Gates that are not stored yet."""

    params: GateParams
    #: (question, result) of each
    results: list[tuple[str, GateResult]]
    #: measurements of the model that did not count any more when they were decided
    n_retired: int


def decide_gates(session: Session, study: Study, params: GateParams) -> Decided:
    """Every gate that the job names; reads only."""
    n_retired = count_retired(session, study.model_id)
    thresholds = GateThresholds.from_dict(study.config.get("gates"))
    evidence = Evidence(session, params.context)
    results = [
        (CRITERIA[name].question, CRITERIA[name].decide(evidence, thresholds, params.phase)) for name in params.gates
    ]
    return Decided(params, results, n_retired)


def save_gates(session: Session, study: Study, job: Job, decided: Decided) -> dict[str, str]:
    """Store the verdicts; a gate decided before is decided anew. Returns name → verdict.

    A gate that looks at something stale is as stale as that; one that does not loses the mark that it had.

    A NO-GO stops the study unless it says ``on_no_go: continue``: what has not begun is skipped.
    """
    hold_measured(
        session, session.scalars(select(Calibration.id).where(Calibration.model_id == study.model_id)), alone=False
    )
    if count_retired(session, study.model_id) != decided.n_retired:
        # a measurement was retired between looking and storing: look again, now that none can be
        decided = decide_gates(session, study, decided.params)
    stale_reason = stale_evidence(session, job)
    verdicts: dict[str, str] = {}
    refused: GateResult | None = None
    # rising ids keep the gates of a phase in the plan's order
    ids = sorted(new_id("gate") for _ in decided.results)
    for gate_id, (question, result) in zip(ids, decided.results, strict=True):
        gate = _store(session, study, job, gate_id, question, result)
        gate.stale_at, gate.stale_reason = (utc_now(), stale_reason) if stale_reason else (None, None)
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


def _store(session: Session, study: Study, job: Job, gate_id: str, question: str, result: GateResult) -> Gate:
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
    return gate
