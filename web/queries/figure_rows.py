"""Rows of a study's figures, and a version of each figure that changes when its rows do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from compress_core.config import CompressionConfig
from results_db.params import MatrixFilter
from results_db.states import JobKind
from results_db.tables import (
    Allocation,
    AllocationItem,
    Compression,
    Evaluation,
    Fit,
    Job,
    Measurement,
    Model,
    RetiredMeasurement,
    SensitivityAnchor,
    Study,
    Sweep,
)
from web.figures import AnchorResult, Cell, ChosenConfig, FittedCell, Outcome
from web.formatting import CONFIG_DEFAULTS, config_label
from web.queries.model_rows import sensitivity_counts
from web.queries.steps import first_of, model_label, results, several_budgets

_ALL = MatrixFilter()
_ROLES = {"original": "original", "optimal": "optimal", "chosen": "optimal", "uniform": "uniform"}


def figure_versions(session: Session, study: Study, jobs: list[Job]) -> dict[str, str]:
    """Figure name → a text that is equal as long as the figure would be; cheap, read at every live update."""
    sweep, sensitivity = _sweep(session, jobs), first_of(jobs, JobKind.SENSITIVITY)
    errors = ""
    if sweep is not None:
        n, n_retired = (
            session.scalar(select(func.count()).select_from(table).where(*_of_sweep(sweep, table)))
            for table in (Measurement, RetiredMeasurement)
        )
        # a cell that was measured again is another one, although there are as many as before
        errors = f"{sweep.id}:{n}:{n_retired}"
    calibration_id = _calibration_of(sensitivity)
    n = session.scalar(
        select(func.count()).where(
            SensitivityAnchor.model_id == study.model_id,
            SensitivityAnchor.calibration_id == calibration_id,
            SensitivityAnchor.method == "kl_anchor",
        )
    )
    fits = _ids(results(jobs, JobKind.FIT, "fit_id").values())
    estimated, faithful = sensitivity_counts(session, sensitivity)
    return {
        "outcome": _ids(results(jobs, JobKind.EVALUATE, "evaluation_id").values()),
        "prediction": _ids(results(jobs, JobKind.VALIDATE, "validation_id").values()),
        "frontier": _ids(results(jobs, JobKind.ALLOCATE, "allocation_id").values()),
        "allocation": _ids(results(jobs, JobKind.ALLOCATE, "allocation_id").values()),
        "errors": f"{errors}:{fits}",
        "sensitivity": f"{calibration_id}:{n}",
        "estimates": estimated,
        "fidelity": faithful,
        "fit": fits,
        "forms": fits,
    }


def error_cells(session: Session, model: Model, jobs: list[Job]) -> list[Cell]:
    """Every cell that the sweep was asked for; a config whose rank was clamped shows what was measured instead."""
    sweep = _sweep(session, jobs)
    if sweep is None:
        return []
    found: dict[tuple[Any, ...], tuple[float, float, int]] = {}
    # a later numerics version replaces an earlier one
    rows = session.execute(
        select(
            Measurement.layer_idx,
            Measurement.projection,
            Measurement.expert_idx,
            Measurement.config_hash,
            Measurement.calibration_weighted_error,
            Measurement.bits_per_weight,
            Measurement.nbytes,
        )
        .where(*_of_sweep(sweep))
        .order_by(Measurement.numerics_version, Measurement.id)
    )
    for *key, error, bits, nbytes in rows:
        found[tuple(key)] = (error, bits, nbytes)
    wanted = MatrixFilter.model_validate(
        next((job.params.get("matrices") or {} for job in jobs if job.id == sweep.job_id), {})
    )
    configs = [CompressionConfig.from_dict(fields) for fields in sweep.configs]
    names = _config_names(sweep.configs)
    cells = []
    for matrix in _by_projection(model.matrices, wanted):
        for config, name in zip(configs, names, strict=True):
            cells.append(
                Cell(*_key(matrix), name, *found.get((*_key(matrix), _hash(config, matrix)), (None, None, None)))
            )
    return cells


def anchor_results(session: Session, model: Model, jobs: list[Job]) -> list[AnchorResult]:
    """One row a matrix and anchor of the study's sensitivity job, measured or not."""
    job = first_of(jobs, JobKind.SENSITIVITY)
    calibration_id = _calibration_of(job)
    if job is None or calibration_id is None:
        return []
    rows = session.scalars(
        select(SensitivityAnchor)
        .where(
            SensitivityAnchor.model_id == model.id,
            SensitivityAnchor.calibration_id == calibration_id,
            SensitivityAnchor.method == "kl_anchor",
        )
        # this job's own rows win over those of another text, later ones over earlier ones
        .order_by(SensitivityAnchor.job_id == job.id, SensitivityAnchor.numerics_version, SensitivityAnchor.id)
    ).all()
    found = {(r.layer_idx, r.projection, r.expert_idx, r.anchor_config_hash): r for r in rows}
    results = []
    for matrix in _by_projection(model.matrices):
        for anchor in job.params.get("anchors") or []:
            key = _key(matrix)
            row = found.get((*key, _hash(CompressionConfig.from_dict(anchor), matrix)))
            results.append(
                AnchorResult(
                    *key,
                    anchor=config_label(anchor),
                    kl=row.kl if row else None,
                    kl_se=row.kl_se if row else None,
                    sensitivity=row.sensitivity if row else None,
                )
            )
    return results


def chosen_configs(session: Session, model: Model, jobs: list[Job]) -> list[ChosenConfig]:
    """Items of the uniform and the optimal allocations, uniform first."""
    by_step = results(jobs, JobKind.ALLOCATE, "allocation_id")
    names = {step.split(":", 1)[-1]: found for step, found in by_step.items()}
    order_of = {name: number for number, name in enumerate(("uniform", "optimal", "reanchored"))}
    shown = [name for name in names if name.split("@")[0] in order_of]
    shown.sort(key=lambda name: (name.partition("@")[2], order_of[name.split("@")[0]]))
    weights = {_key(m): m["out_features"] * m["in_features"] for m in model.matrices}
    order = {_key(m): i for i, m in enumerate(_by_projection(model.matrices))}
    chosen, several = [], several_budgets(jobs)
    for name in shown:
        items = session.scalars(select(AllocationItem).where(AllocationItem.allocation_id == names[name])).all()
        for item in sorted(items, key=lambda i: order.get((i.layer_idx, i.projection, i.expert_idx), 0)):
            n_weights = weights.get((item.layer_idx, item.projection, item.expert_idx))
            chosen.append(
                ChosenConfig(
                    model_label(name, several=several),
                    item.layer_idx,
                    item.projection,
                    item.expert_idx,
                    config_label(item.config),
                    item.b_q,
                    item.rank,
                    item.nbytes,
                    8 * item.nbytes / n_weights if n_weights else None,
                )
            )
    return chosen


def outcomes(session: Session, model: Model, jobs: list[Job]) -> list[Outcome]:
    """Every evaluated model of the study except the pilot's, in the order of its steps."""
    out, several = [], several_budgets(jobs)
    by_step = results(jobs, JobKind.EVALUATE, "evaluation_id")
    for step, evaluation_id in by_step.items():
        name = step.split(":")[1] if ":" in step else step
        evaluation = session.get(Evaluation, evaluation_id)
        if evaluation is None or name.startswith("phase0"):
            continue
        if name.startswith("chosen") and list(by_step.values()).count(evaluation_id) > 1:
            continue  # what is kept is one of the others
        compression = session.get(Compression, evaluation.compression_id) if evaluation.compression_id else None
        allocation = session.get(Allocation, compression.allocation_id) if compression else None
        base = name.split("@")[0]
        out.append(
            Outcome(
                label=model_label(name, several=several),
                dataset=evaluation.dataset,
                role=_ROLES.get(base, "baseline"),
                nbytes=compression.actual_bytes if compression else model.original_bytes,
                bits_per_weight=allocation.bits_per_weight if allocation else None,
                ppl=evaluation.value,
                ppl_low=evaluation.ci_low,
                ppl_high=evaluation.ci_high,
                n_windows=evaluation.n_items,
            )
        )
    return out


def fitted(session: Session, jobs: list[Job]) -> tuple[list[FittedCell], Fit | None]:
    """The residuals of the study's last fit."""
    ids = list(results(jobs, JobKind.FIT, "fit_id").values())
    fit = session.get(Fit, ids[-1]) if ids else None
    if fit is None:
        return [], None
    names = ("layer_idx", "projection", "expert_idx", "b_q", "rank", "error", "predicted")
    return [FittedCell(**{name: row.get(name) for name in names}) for row in fit.residuals], fit


def _ids(found: Iterable[str]) -> str:
    return ",".join(found)


def _calibration_of(job: Job | None) -> str | None:
    if job is None:
        return None
    return (job.result or {}).get("calibration_id") or job.params.get("calibration_id")


def _sweep(session: Session, jobs: Iterable[Job]) -> Sweep | None:
    job = first_of(jobs, JobKind.SWEEP)
    if job is None:
        return None
    own = session.scalar(select(Sweep).where(Sweep.job_id == job.id))
    sweep_id = (job.result or {}).get("sweep_id")
    return own or (session.get(Sweep, sweep_id) if sweep_id else None)


def _of_sweep(
    sweep: Sweep, table: type[Measurement] | type[RetiredMeasurement] = Measurement
) -> tuple[ColumnElement[bool], ...]:
    """Measurements are shared between sweeps: those of its calibration and configs are its own, whoever made them."""
    return (
        table.model_id == sweep.model_id,
        table.calibration_id == sweep.calibration_id,
        table.config_hash.in_(list(sweep.config_hashes)),
    )


def _key(matrix: dict[str, Any]) -> tuple[int, str, int]:
    return (matrix["layer_idx"], matrix["projection"], matrix["expert_idx"])


def _by_projection(matrices: list[dict[str, Any]], only: MatrixFilter = _ALL) -> list[dict[str, Any]]:
    """The wanted matrices, projection by projection in the order in which a layer has them, then by layer."""
    order = {name: i for i, name in enumerate(dict.fromkeys(m["projection"] for m in matrices))}
    kept = [m for m in matrices if only.passes(m["layer_idx"], m["projection"])]
    return sorted(kept, key=lambda m: (order[m["projection"]], m["layer_idx"], m["expert_idx"]))


def _hash(config: CompressionConfig, matrix: dict[str, Any]) -> str:
    """Of what is measured where this config is asked for."""
    return config.clamped(matrix["out_features"], matrix["in_features"]).config_hash


def _config_names(configs: list[dict[str, Any]]) -> list[str]:
    """Short names, told apart by seed and iterations where they would be equal."""
    full = [CONFIG_DEFAULTS | config for config in configs]
    names = [config_label(config) for config in full]
    return [
        name if names.count(name) == 1 else f"{name} seed {config['seed']} it {config['iterations']}"
        for name, config in zip(names, full, strict=True)
    ]
