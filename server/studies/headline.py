"""The headline: uniform against optimal at equal bytes, beside the original, rank 0 and round-to-nearest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from compress_core.analyze import Contender, Headline
from compress_core.analyze.headline import rival_remark
from compress_core.analyze.verdict import Estimate
from results_db.states import JobState
from results_db.tables import Allocation, Compression, Evaluation, Job, Model, Study
from server.evaluations.schemas import Comparison
from server.evaluations.service import compare_evaluations
from server.models.service import original_matrix_bytes
from server.studies.plan import OPTIMAL, RANK0, RIVALS, UNIFORM, budget_suffix, dataset_names, resolved_budgets
from server.studies.schemas import StudyConfig

LABELS = {
    "original": "original",
    UNIFORM: "best uniform",
    OPTIMAL: "optimal",
    RANK0: "rank 0, optimal",
    "rtn": "round-to-nearest",
    "gptq": "GPTQ",
}


def study_headline(session: Session, study: Study, jobs: Sequence[Job]) -> dict[str, Any] | None:
    """One entry a budget, on the first dataset; the first entry also at the top. None where nothing is compared."""
    config = StudyConfig.model_validate(study.config)
    done = {job.step: job.result or {} for job in jobs if job.state == JobState.SUCCEEDED}
    dataset = dataset_names(config)[0]
    entries = []
    for position in range(len(resolved_budgets(config))):
        entry = _entry(session, done, dataset, budget_suffix(position))
        if entry is not None:
            entries.append(entry)
    return entries[0] | {"budgets": entries} if entries else None


def _entry(
    session: Session, done: dict[str | None, dict[str, Any]], dataset: str, suffix: str
) -> dict[str, Any] | None:
    evaluations: dict[str, Evaluation] = {}
    for name in LABELS:
        step = f"evaluate:{name}:{dataset}" if name == "original" else f"evaluate:{name}{suffix}:{dataset}"
        if id_ := done.get(step, {}).get("evaluation_id"):
            evaluations[name] = session.get_one(Evaluation, id_)
    if not set(evaluations) - {"original"}:
        return None
    allocations: dict[str, Allocation] = {}
    for name in evaluations:
        if id_ := done.get(f"allocate:{name}{suffix}", {}).get("allocation_id"):
            allocations[name] = session.get_one(Allocation, id_)
    any_allocation = next(iter(allocations.values()))
    first = next(iter(evaluations.values()))
    rows = [_row(session, name, e, allocations.get(name)) for name, e in evaluations.items()]
    entry: dict[str, Any] = {
        "dataset": first.dataset,
        "split": first.split,
        "scope": any_allocation.scope,
        "budget_bytes": any_allocation.budget_bytes,
        "rows": rows,
        "optimal_vs_uniform": {"verdict": "not measured"},
        "sentence": None,
        "remarks": [],
    }
    if UNIFORM in evaluations and OPTIMAL in evaluations:
        entry |= _comparison(session, evaluations, {row["name"]: row for row in rows})
    return entry


def _row(session: Session, name: str, evaluation: Evaluation, allocation: Allocation | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": name,
        "label": LABELS[name],
        "ppl": evaluation.value,
        "ppl_low": evaluation.ci_low,
        "ppl_high": evaluation.ci_high,
        "evaluation_id": evaluation.id,
        "compression_id": evaluation.compression_id,
        "allocation_id": allocation.id if allocation else None,
    }
    if allocation is None:
        model = session.get_one(Model, evaluation.model_id)
        matrix_bytes = original_matrix_bytes(model)
        n_weights = sum(m["out_features"] * m["in_features"] for m in model.matrices)
        return row | {
            "bytes": model.original_bytes,
            "matrix_bytes": matrix_bytes,
            "bits_per_weight": 8 * matrix_bytes / n_weights,
        }
    compression = session.get_one(Compression, evaluation.compression_id)
    return row | {
        "bytes": compression.actual_bytes,
        "matrix_bytes": allocation.matrix_bytes,
        "bits_per_weight": allocation.bits_per_weight,
    }


def _comparison(
    session: Session, evaluations: dict[str, Evaluation], rows: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    uniform, optimal = evaluations[UNIFORM], evaluations[OPTIMAL]
    found = compare_evaluations(session, uniform.id, optimal.id)
    gain = _gain(found)
    remarks = [
        rival_remark(
            _contender(rows[OPTIMAL]),
            _contender(rows[name]),
            _gain(compare_evaluations(session, evaluations[name].id, optimal.id)),
        )
        for name in RIVALS
        if name in evaluations and evaluations[name].compression_id != optimal.compression_id
    ]
    headline = Headline(
        uniform=_contender(rows[UNIFORM]),
        optimal=_contender(rows[OPTIMAL]),
        gain_percent=gain,
        original=_contender(rows["original"]) if "original" in rows else None,
    )
    verdict = found.verdict if found.verdict == "not distinguishable" else f"optimal is {found.verdict}"
    return {
        "optimal_vs_uniform": {
            "relative_ppl_change": found.relative_ppl_change,
            "low": found.low,
            "high": found.high,
            "verdict": verdict,
            "n_windows": found.n_windows,
            "same_model": uniform.compression_id == optimal.compression_id,
            "fair": headline.fair,
            "excess_removed": headline.excess_removed,
            "recommended": headline.recommended,
        },
        "sentence": headline.sentence(),
        "remarks": [remark for remark in remarks if remark],
    }


def _gain(found: Comparison) -> Estimate:
    """PPL gain of b over a, in %."""
    return Estimate(-100 * found.relative_ppl_change, -100 * found.high, -100 * found.low, found.n_windows)


def _contender(row: dict[str, Any]) -> Contender:
    return Contender(
        name=row["label"],
        perplexity=row["ppl"],
        nbytes=row["matrix_bytes"],
        bits_per_weight=row["bits_per_weight"],
        low=row["ppl_low"],
        high=row["ppl_high"],
    )
