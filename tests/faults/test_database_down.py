"""A database server that stops in the middle of a job, and comes back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from results_db import Database
from results_db.migrate import upgrade
from results_db.states import AttemptState, JobKind, JobState
from tests.faults.misbehaving import IMPATIENT, PROGRAM
from tests.faults.patient import PatientService
from tests.postgres import running_postgres
from tests.service import Service
from tests.sweeps import N_CONFIGS, N_MATRICES, assert_complete, start_sweep, states
from worker.registration import ProcessId


@pytest.fixture(scope="module")
def postgres(short_dir: Path) -> Iterator[Any]:
    """A PostgreSQL server that these tests may stop."""
    with running_postgres(short_dir, "own") as server:
        yield server
        server.start()  # its clean-up wants it to run


@pytest.fixture(scope="module")
def service(
    postgres: Any, redis_server_url: str, repo: Path, tiny_model: Path, text_path: Path, short_dir: Path
) -> Iterator[Service]:
    """In place of the service that shares its servers with other tests."""
    url = postgres.get_uri(database="postgres", driver="psycopg")
    database = Database(url)
    upgrade(database)
    database.dispose()
    folder = Path(tempfile.mkdtemp(dir=short_dir))
    service = PatientService(url, redis_server_url, folder, repo, [tiny_model.parent.parent, text_path.parent])
    service.start_worker(BITBUDGET_LEASE_S="45", BITBUDGET_HEARTBEAT_S="1")
    yield service
    service.close()


def test_the_database_stops_during_a_result_s_write(
    service: Service, postgres: Any, model_id: str, calibration_id: str, grid: Any
) -> None:
    """The write is tried again until it is back: one attempt, every cell once."""
    job_id = start_sweep(service, model_id, calibration_id, grid(51, N_CONFIGS))
    worker = service.worker()
    postgres.stop()
    service.wait(lambda: "a write failed and is tried again" in service.logs(), "a write that fails")
    postgres.start()
    assert_complete(service, job_id)
    assert states(service, job_id) == [AttemptState.SUCCEEDED]
    assert worker.poll() is None


def test_a_claim_while_the_database_is_away(
    service: Service, postgres: Any, model_id: str, calibration_id: str, grid: Any
) -> None:
    """The horse cannot claim what it was given, and ends; the attempt is queued as before, and rung for again."""
    params = {"model_id": model_id, "calibration_id": calibration_id, "configs": grid(52, 1)}
    job_id = service.submit(JobKind.SWEEP, params)
    (attempt,) = service.attempts(job_id)
    worker = service.worker()
    postgres.stop()
    service.relay._send(attempt.id)

    def failed() -> bool:
        return any(attempt.id in line and "OperationalError" in line for line in service.logs().splitlines())

    service.wait(failed, "a claim that fails")
    postgres.start()
    assert service.finish(job_id).state == JobState.SUCCEEDED
    assert service.job(job_id).result["recorded"] == N_MATRICES
    assert states(service, job_id) == [AttemptState.SUCCEEDED]
    assert worker.poll() is None


def test_the_database_is_away_for_longer_than_a_job_waits(
    service: Service, postgres: Any, model_id: str, calibration_id: str, grid: Any
) -> None:
    """The job can record neither a result nor its end: its lease runs out, and the next attempt goes on."""
    service.worker().kill()
    service.worker().wait()
    impatient = service.start_worker(program=PROGRAM, **{IMPATIENT: "1"})
    job_id = start_sweep(service, model_id, calibration_id, grid(54, N_CONFIGS))
    (first,) = service.attempts(job_id)
    horse = service.horse(impatient)
    postgres.stop()
    service.wait(lambda: ProcessId.of(horse) is None, "a horse that gives up")
    postgres.start()
    assert_complete(service, job_id)
    assert service.attempts(job_id)[0].id == first.id
    assert states(service, job_id) == [AttemptState.LOST, AttemptState.SUCCEEDED]
    assert impatient.poll() is None
