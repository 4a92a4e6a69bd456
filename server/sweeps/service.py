"""Ask a worker for a sweep, and say how far one has come."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from results_db.params import SweepParams
from results_db.queue.submit import submit_job
from results_db.states import JobKind
from results_db.tables import Job, Measurement, Model, Sweep
from server.kit.checks import check_calibration, check_configs, check_matrices
from server.kit.rows import get_row
from server.models.service import model_specs


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
    measured = select(func.count()).where(
        Measurement.model_id == sweep.model_id,
        Measurement.calibration_id == sweep.calibration_id,
        Measurement.config_hash.in_(sweep.config_hashes),
    )
    job = get_row(session, Job, sweep.job_id)
    only = job.params.get("matrices") or {}
    if only.get("layers"):
        measured = measured.where(Measurement.layer_idx.in_(only["layers"]))
    if only.get("projections"):
        measured = measured.where(Measurement.projection.in_(only["projections"]))
    n_recorded = min(session.scalar(measured) or 0, sweep.n_cells)
    return sweep.as_dict() | {"n_recorded": n_recorded, "state": job.state}
