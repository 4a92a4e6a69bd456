"""A worker that is asked to stop a sweep stops it, what fails does not stop it; one without its device never starts."""

from __future__ import annotations

import os
from typing import Any

import pytest
from sqlalchemy import select

from results_db.queue.submit import cancel_job, pause_job, resume_job
from results_db.states import AttemptState, JobKind, JobState
from results_db.tables import Worker
from tests.service import Service
from tests.sweeps import N_CELLS, N_CONFIGS, assert_complete, start_sweep, states

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def make_service() -> type[Service]:
    """With real workers."""
    return Service


def test_cancel_stops_a_running_sweep(service: Any, model_id: str, calibration_id: str, grid: Any) -> None:
    job_id = start_sweep(service, model_id, calibration_id, grid(7, N_CONFIGS))
    with service.database.write() as session:
        cancel_job(session, job_id)
    job = service.finish(job_id)
    assert job.state == JobState.CANCELLED
    assert states(service, job_id) == [AttemptState.CANCELLED]
    assert service.measured(job_id) < N_CELLS
    assert service.worker().poll() is None


def test_pause_and_resume(service: Any, model_id: str, calibration_id: str, grid: Any) -> None:
    job_id = start_sweep(service, model_id, calibration_id, grid(8, N_CONFIGS))
    with service.database.write() as session:
        pause_job(session, job_id)
    service.reach(job_id, JobState.PAUSED)
    with service.database.write() as session:
        resume_job(session, job_id)
    assert_complete(service, job_id)
    assert states(service, job_id) == [AttemptState.RELEASED, AttemptState.SUCCEEDED]


def test_a_worker_outlives_what_fails(service: Any, model_id: str, calibration_id: str, grid: Any) -> None:
    """What each kind of job records, and how it fails, is tested without the process: test_handlers."""
    worker = service.worker()
    params = {"model_id": model_id, "calibration_id": calibration_id}
    job = service.finish(service.submit(JobKind.SWEEP, params | {"configs": [{"b_q": 9}]}))
    assert (job.state, job.error["code"]) == (JobState.FAILED, "invalid-config")
    assert states(service, job.id) == [AttemptState.FAILED]
    assert service.finish(service.submit(JobKind.SWEEP, params | {"configs": grid(18, 1)})).state == JobState.SUCCEEDED
    assert worker.poll() is None


def test_an_absent_gpu_is_an_error(service: Any) -> None:
    worker = service.start_worker(BITBUDGET_DEVICE="RTX 3090")
    assert worker.wait(timeout=60) == 2
    service.workers.remove(worker)
    log = service.logs()
    assert "the device 'RTX 3090' is not here" in log
    assert "never falls back" in log


def test_workers_are_known(service: Any, model_id: str, calibration_id: str) -> None:
    alive = service.worker()
    with service.database.read() as session:
        rows = session.scalars(select(Worker)).all()
    assert [row.pid for row in rows if row.state == "up"] == [alive.pid]
    row = next(row for row in rows if row.pid == alive.pid)
    assert (row.device, row.device_kind, row.hostname) == ("cpu", "cpu", os.uname().nodename)
    assert row.versions["torch"]
