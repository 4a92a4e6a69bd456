"""Sweeps of the tiny model that are long enough to be disturbed."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select

from results_db.states import TERMINAL, JobKind, JobState
from results_db.tables import Measurement

#: matrices of the tiny model
N_MATRICES = 14
#: enough that a sweep is still running when it is disturbed
N_CONFIGS = 8
N_CELLS = N_MATRICES * N_CONFIGS


def states(service: Any, job_id: str) -> list[str]:
    return [attempt.state for attempt in service.attempts(job_id)]


def start_sweep(service: Any, model_id: str, calibration_id: str, configs: list[dict[str, Any]]) -> str:
    """A sweep that a worker has begun to record."""
    params = {"model_id": model_id, "calibration_id": calibration_id, "configs": configs}
    job_id = service.submit(JobKind.SWEEP, params)
    service.wait(lambda: service.measured(job_id) >= 3 or service.job(job_id).state in TERMINAL, "three measurements")
    job = service.job(job_id)
    assert job.state == JobState.RUNNING, job.error or "the sweep was too quick to be disturbed"
    return str(job_id)


def assert_complete(service: Any, job_id: str) -> None:
    """Every cell once."""
    job = service.finish(job_id)
    assert job.state == JobState.SUCCEEDED, job.error
    assert job.result["n_cells"] == N_CELLS
    with service.database.read() as session:
        sweep_id = job.result["sweep_id"]
        of_sweep = Measurement.sweep_id == sweep_id
        assert session.scalar(select(func.count()).select_from(Measurement).where(of_sweep)) == N_CELLS
        key = (Measurement.layer_idx, Measurement.projection, Measurement.config_hash)
        assert len(session.execute(select(*key).where(of_sweep).distinct()).all()) == N_CELLS
