"""The headline: uniform against optimal at equal bytes, beside the original and the rivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy.orm import Session

from compress_core.analyze import Contender, Guard, Headline
from compress_core.analyze.headline import rival_remark
from compress_core.analyze.verdict import Estimate
from results_db.states import JobState
from results_db.tables import Allocation, Compression, Evaluation, Job, Model, Study
from server.evaluations.schemas import Comparison
from server.evaluations.service import compare_evaluations
from server.models.service import original_matrix_bytes
from server.studies.guard import describe_validation, guard_of
from server.studies.plan import dataset_names, resolved_budgets
from server.studies.schemas import StudyConfig
from server.studies.steps import CHOSEN, MANUAL, OPTIMAL, RANK0, REANCHORED, RIVALS, UNIFORM, budget_suffix

LABELS = {
    "original": "original",
    UNIFORM: "best uniform",
    OPTIMAL: "optimal",
    REANCHORED: "optimal, re-anchored",
    RANK0: "rank 0, optimal",
    MANUAL: "manual",
    "rtn": "round-to-nearest",
    "gptq": "GPTQ",
}

#: results of the jobs that succeeded, by step
Done = Mapping[str | None, dict[str, Any]]


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


def _entry(session: Session, done: Done, dataset: str, suffix: str) -> dict[str, Any] | None:
    evaluations = _evaluations(session, done, dataset, suffix)
    if not set(evaluations) - {"original"}:
        return None
    allocations: dict[str, Allocation] = {}
    for name in [*evaluations, CHOSEN]:
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
        "ceiling": None,
        "remarks": [],
        "validation": None,
    }
    if id_ := done.get(f"validate:choice{suffix}", {}).get("validation_id"):
        entry["validation"] = describe_validation(session, id_)
    if UNIFORM in evaluations and OPTIMAL in evaluations:
        # the second optimum was made since the first one's prediction did not hold, and the guard prefers it
        optimal = REANCHORED if REANCHORED in evaluations else OPTIMAL
        guard = _guard(session, allocations, optimal)
        entry |= _comparison(session, evaluations, {row["name"]: row for row in rows}, optimal, guard)
    return entry


def _evaluations(session: Session, done: Done, dataset: str, suffix: str) -> dict[str, Evaluation]:
    """By name; a re-anchored optimum is there where it is what the study keeps."""
    found: dict[str, Evaluation] = {}
    for name in LABELS:
        base = CHOSEN if name == REANCHORED else name
        step = f"evaluate:{base}:{dataset}" if name == "original" else f"evaluate:{base}{suffix}:{dataset}"
        if id_ := done.get(step, {}).get("evaluation_id"):
            found[name] = session.get_one(Evaluation, id_)
    kept = found.get(REANCHORED)
    others = [found[name].compression_id for name in (UNIFORM, OPTIMAL) if name in found]
    if kept is not None and kept.compression_id in others:
        del found[REANCHORED]
    return found


def _guard(session: Session, allocations: Mapping[str, Allocation], optimal: str) -> Guard | None:
    """None where nothing was validated."""
    kept = allocations.get(CHOSEN)
    if kept is None or not {optimal, UNIFORM} <= set(allocations):
        return None
    guard = guard_of(session, kept=kept, optimal=allocations[optimal], uniform=allocations[UNIFORM])
    if guard.challenger is None:
        return guard
    # of the second optimum, which lost and is not shown: its numbers are not the first one's
    base = guard.challenger.partition("@")[0]
    return replace(guard, challenger=LABELS.get(base, guard.challenger))


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
    session: Session,
    evaluations: dict[str, Evaluation],
    rows: dict[str, dict[str, Any]],
    name: str,
    guard: Guard | None,
) -> dict[str, Any]:
    """The optimum of that name against uniform."""
    uniform, optimal = evaluations[UNIFORM], evaluations[name]
    found = compare_evaluations(session, uniform.id, optimal.id)
    gain = _gain(found)
    remarks = [
        rival_remark(
            _contender(rows[name]),
            _contender(rows[rival]),
            _gain(compare_evaluations(session, evaluations[rival].id, optimal.id)),
        )
        for rival in RIVALS
        if rival in evaluations and evaluations[rival].compression_id != optimal.compression_id
    ]
    # the manual recipe at a budget that its high config fills, say
    remarks += [
        f"{rows[rival]['label']} is the best uniform model itself at this budget."
        for rival in RIVALS
        if rival in evaluations and evaluations[rival].compression_id == uniform.compression_id
    ]
    original = evaluations.get("original")
    headline = Headline(
        uniform=_contender(rows[UNIFORM]),
        optimal=_contender(rows[name]),
        gain_percent=gain,
        original=_contender(rows["original"]) if original else None,
        guard=guard,
        ceiling_percent=_gain(compare_evaluations(session, uniform.id, original.id)) if original else None,
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
            "guard": None if guard is None else asdict(guard),
        },
        "sentence": headline.sentence(),
        "ceiling": headline.ceiling(),
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
