"""Ask a worker for a sweep, and say how far one has come."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from compress_core.config import CompressionConfig
from compress_core.matrix import MatrixKey
from compress_core.version import NUMERICS_VERSION
from results_db.params import MatrixFilter, SweepParams
from results_db.queue.submit import submit_job
from results_db.states import JobKind
from results_db.tables import Job, Measurement, Model, Sweep
from server.kit.checks import check_calibration, check_configs, check_matrices
from server.kit.rows import get_row
from server.models.service import model_specs

#: (matrix, config_hash)
Cell = tuple[MatrixKey, str]


def submit_sweep(session: Session, params: SweepParams) -> Job:
    """A sweep job. Ranks beyond a small matrix are clamped by the worker, and the sweep records where."""
    model = get_row(session, Model, params.model_id)
    check_matrices(params.matrices, model_specs(model), "matrices")
    checked = params.model_copy(
        update={
            "calibration_id": check_calibration(session, params.model_id, params.calibration_id).id,
            "configs": check_configs(params.configs, "configs"),
        }
    )
    return submit_job(session, JobKind.SWEEP, checked.model_dump(mode="json"))


def describe_sweep(session: Session, sweep: Sweep) -> dict[str, Any]:
    """The sweep with ``n_recorded``: its cells that are measured by now, whoever measured them first."""
    return sweep.as_dict() | {
        "n_recorded": len(recorded_cells(session, sweep)),
        "state": get_row(session, Job, sweep.job_id).state,
    }


def recorded_cells(session: Session, sweep: Sweep) -> set[Cell]:
    """The cells of the sweep that are measured."""
    columns = (Measurement.layer_idx, Measurement.projection, Measurement.expert_idx, Measurement.config_hash)
    rows = session.execute(
        select(*columns).where(
            Measurement.model_id == sweep.model_id,
            Measurement.calibration_id == sweep.calibration_id,
            Measurement.numerics_version == NUMERICS_VERSION,
            Measurement.config_hash.in_(sweep.config_hashes),
        )
    )
    return _cells(session, sweep) & {(MatrixKey(row[0], row[1], row[2]), row[3]) for row in rows}


def _cells(session: Session, sweep: Sweep) -> set[Cell]:
    """Every cell that the sweep asked for, ranks clamped to the matrix."""
    only = MatrixFilter.model_validate(get_row(session, Job, sweep.job_id).params.get("matrices") or {})
    configs = [CompressionConfig.from_dict(fields) for fields in sweep.configs]
    return {
        (spec.key, config.clamped(spec.out_features, spec.in_features).config_hash)
        for spec in model_specs(get_row(session, Model, sweep.model_id))
        for config in configs
        if (only.layers is None or spec.key.layer_idx in only.layers)
        and (only.projections is None or spec.key.projection in only.projections)
    }
