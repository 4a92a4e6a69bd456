"""Two workers share a split sweep: each takes layers, and the death of one costs nothing and doubles nothing."""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import select

from results_db.queue.submit import cancel_job
from results_db.states import AttemptState, JobState
from results_db.tables import Attempt, Measurement, Sweep, Worker

pytestmark = pytest.mark.slow

N_LAYERS, N_PROJECTIONS = 4, 7
#: enough that a layer is still being measured when its worker is killed
N_CONFIGS = 8
N_CELLS = N_LAYERS * N_PROJECTIONS * N_CONFIGS


@pytest.fixture(scope="module")
def deep(service: Any, deep_model: Any, text_path: Any) -> dict[str, str]:
    """The four-layer model, calibrated, with two workers up."""
    service.start_worker()
    service.start_worker()
    service.wait(lambda: service.logs().count("listens on queue") == 2, "two workers that listen")
    model_id = service.add_model(deep_model)
    return {"model_id": model_id, "calibration_id": service.calibrate(model_id, text_path)}


def pids(service: Any) -> dict[str, int]:
    """The process of each worker, by the id of its row."""
    with service.database.read() as session:
        return {row.id: row.pid for row in session.scalars(select(Worker))}


def running(service: Any, job_id: str) -> list[Attempt]:
    """Attempts of the parts that run now and have recorded something."""
    ids = [part.id for part in service.parts(job_id)]
    with service.database.read() as session:
        query = select(Attempt).where(Attempt.job_id.in_(ids), Attempt.state == AttemptState.RUNNING.value)
        return [
            attempt
            for attempt in session.scalars(query)
            if session.scalar(select(Measurement.id).where(Measurement.attempt_id == attempt.id).limit(1))
        ]


def start(
    service: Any, deep: dict[str, str], configs: list[dict[str, Any]], *, n_workers: int
) -> tuple[str, list[Attempt]]:
    """A split sweep of which so many workers measure a layer, and their attempts."""
    job_id = service.submit_sweep(**deep, configs=configs)
    assert service.job(job_id).state == JobState.WAITING
    attempts = service.wait(
        lambda: (found := running(service, job_id)) and len({a.worker_id for a in found}) == n_workers and found,
        f"a layer on each of {n_workers} workers",
    )
    return job_id, attempts


def cells(service: Any, job_id: str) -> Counter[tuple[Any, ...]]:
    with service.database.read() as session:
        key = (Measurement.layer_idx, Measurement.projection, Measurement.config_hash)
        rows = session.execute(select(*key).join(Sweep, Sweep.id == Measurement.sweep_id).where(Sweep.job_id == job_id))
        return Counter(tuple(row) for row in rows)


def test_a_killed_worker_loses_and_doubles_nothing(service: Any, deep: dict[str, str], grid: Any) -> None:
    job_id, both = start(service, deep, grid(21, N_CONFIGS), n_workers=2)
    victim = both[0]
    pid = pids(service)[victim.worker_id]
    worker = next(process for process in service.workers if process.pid == pid)
    horse = service.horse(worker)
    worker.kill()
    with suppress(ProcessLookupError):
        os.kill(horse, signal.SIGKILL)
    worker.wait()
    service.workers.remove(worker)

    job = service.finish(job_id)
    assert job.state == JobState.SUCCEEDED, job.error
    assert job.result["n_cells"] == job.result["recorded"] == N_CELLS
    assert (job.result["reused"], job.result["n_parts"]) == (0, N_LAYERS)
    found = cells(service, job_id)
    assert len(found) == N_CELLS
    assert set(found.values()) == {1}
    parts = service.parts(job_id)
    assert [part.params["matrices"]["layers"] for part in parts] == [[0], [1], [2], [3]]
    states = {part.id: [a.state for a in service.attempts(part.id)] for part in parts}
    assert states[victim.job_id] == [AttemptState.LOST, AttemptState.SUCCEEDED]
    assert {of_layer[-1] for of_layer in states.values()} == {AttemptState.SUCCEEDED}
    assert service.attempts(victim.job_id)[1].worker_id == both[1].worker_id
    with service.database.read() as session:
        assert len(session.scalars(select(Sweep).where(Sweep.job_id.in_([job_id, *(p.id for p in parts)]))).all()) == 1


def test_cancelling_the_whole_stops_its_layers(service: Any, deep: dict[str, str], grid: Any) -> None:
    job_id, _ = start(service, deep, grid(22, N_CONFIGS), n_workers=1)
    with service.database.write() as session:
        cancel_job(session, job_id)
    for part in service.parts(job_id):
        assert service.finish(part.id).state in (JobState.CANCELLED, JobState.SUCCEEDED)
    assert service.job(job_id).state == JobState.CANCELLED
    assert sum(part.state == JobState.CANCELLED for part in service.parts(job_id)) >= 2
