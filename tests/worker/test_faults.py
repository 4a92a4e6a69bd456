"""What a worker's death costs: nothing. Each fault on both databases, with a real Redis and real processes."""

from __future__ import annotations

import os
import signal
import sqlite3
from contextlib import closing, suppress
from typing import Any

import pytest
import redis
from sqlalchemy import func, select

from results_db.queue.submit import cancel_job, pause_job, resume_job
from results_db.states import TERMINAL, AttemptState, JobKind, JobState
from results_db.tables import Measurement
from worker.registration import ProcessId

pytestmark = pytest.mark.slow

#: matrices of the tiny model
N_MATRICES = 14
#: enough that a sweep is still running when it is disturbed
N_CONFIGS = 8
N_CELLS = N_MATRICES * N_CONFIGS


def states(service: Any, job_id: str) -> list[str]:
    return [attempt.state for attempt in service.attempts(job_id)]


def kill(pid: int) -> None:
    """kill -9; a horse may have followed its parent already."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def freeze(service: Any, pid: int) -> None:
    """SIGSTOP. On SQLite between two writes: a process that is stopped inside one keeps the only write lock."""
    os.kill(pid, signal.SIGSTOP)
    while service.database.is_sqlite and not _writable(service.database.url.database):
        os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGSTOP)


def _writable(path: str) -> bool:
    with closing(sqlite3.connect(path, timeout=0.2, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
        return True


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


def test_kill_9_of_the_whole_worker(service: Any, model_id: str, calibration_id: str, grid: Any) -> None:
    job_id = start_sweep(service, model_id, calibration_id, grid(1, N_CONFIGS))
    worker = service.worker()
    horse = service.horse(worker)
    worker.kill()
    kill(horse)
    worker.wait()
    before = service.measured(job_id)
    service.worker()
    assert_complete(service, job_id)
    assert states(service, job_id) == [AttemptState.LOST, AttemptState.SUCCEEDED]
    assert service.events(job_id).count("worker_lost") == 1
    assert service.job(job_id).result["reused"] >= before


def test_kill_9_of_a_sweep_that_computes_its_hessians(
    service: Any, model_id: str, calibration_id: str, grid: Any, text_path: Any
) -> None:
    """A calibration that keeps its tokens alone: one job computes H and measures, and goes on where it was killed."""
    text = {"kind": "file", "path": str(text_path)}
    params = {"model_id": model_id, "text": text, "windows": {"length": 32, "count": 16}, "keep": "tokens"}
    calibrated = service.finish(service.submit(JobKind.CALIBRATE, params))
    assert calibrated.state == JobState.SUCCEEDED, calibrated.error
    streamed_id = calibrated.result["calibration_id"]
    job_id = start_sweep(service, model_id, streamed_id, grid(12, N_CONFIGS))
    kill(service.horse(service.worker()))
    assert_complete(service, job_id)
    assert states(service, job_id) == [AttemptState.LOST, AttemptState.SUCCEEDED]
    # and measures what a calibration of the same text that keeps its H does
    stored = {"model_id": model_id, "calibration_id": calibration_id, "configs": grid(12, 2)}
    assert service.finish(service.submit(JobKind.SWEEP, stored)).state == JobState.SUCCEEDED
    key = (Measurement.layer_idx, Measurement.projection, Measurement.config_hash)
    found = []
    with service.database.read() as session:
        for id_ in (streamed_id, calibration_id):
            errors = select(*key, Measurement.calibration_weighted_error).where(Measurement.calibration_id == id_)
            found.append({tuple(row[:3]): row[3] for row in session.execute(errors)})
    shared = found[0].keys() & found[1].keys()
    assert len(shared) == 2 * N_MATRICES
    assert all(found[0][cell] == found[1][cell] for cell in shared)


def test_kill_9_of_the_horse(service: Any, model_id: str, calibration_id: str, grid: Any) -> None:
    job_id = start_sweep(service, model_id, calibration_id, grid(2, N_CONFIGS))
    worker = service.worker()
    kill(service.horse(worker))
    assert_complete(service, job_id)
    assert worker.poll() is None
    lost, succeeded = service.attempts(job_id)
    assert (lost.state, lost.signal) == (AttemptState.LOST, signal.SIGKILL)
    assert lost.peak_rss_bytes > 10_000_000
    assert succeeded.state == AttemptState.SUCCEEDED
    assert succeeded.worker_id == lost.worker_id


def test_the_horse_dies_with_its_parent(service: Any, model_id: str, calibration_id: str, grid: Any) -> None:
    job_id = start_sweep(service, model_id, calibration_id, grid(3, N_CONFIGS))
    worker = service.worker()
    horse = service.horse(worker)
    worker.kill()
    worker.wait()
    service.wait(lambda: ProcessId.of(horse) is None, "the horse's death")
    service.worker()
    assert_complete(service, job_id)
    assert states(service, job_id) == [AttemptState.LOST, AttemptState.SUCCEEDED]


def test_a_lost_lease_is_reaped_without_the_worker(service: Any, model_id: str, calibration_id: str, grid: Any) -> None:
    """A worker that hangs past its lease is fenced: it writes nothing more and ends itself."""
    job_id = start_sweep(service, model_id, calibration_id, grid(4, N_CONFIGS))
    worker = service.worker()
    horse = service.horse(worker)
    freeze(service, horse)
    service.wait(lambda: states(service, job_id)[0] == AttemptState.LOST, "the reaper")
    stopped_at = service.measured(job_id)
    os.kill(horse, signal.SIGCONT)
    service.wait(lambda: ProcessId.of(horse) is None, "the fenced horse's end")
    first = service.attempts(job_id)[0]
    assert_complete(service, job_id)
    with service.database.read() as session:
        by_first = select(func.count()).select_from(Measurement).where(Measurement.attempt_id == first.id)
        assert session.scalar(by_first) == stopped_at


def test_a_poison_job_dies(service: Any, model_id: str, calibration_id: str, grid: Any) -> None:
    params = {"model_id": model_id, "calibration_id": calibration_id, "configs": grid(5, N_CONFIGS)}
    job_id = service.submit(JobKind.SWEEP, params, max_attempts=2)
    worker = service.worker()
    for number in (1, 2):
        service.wait(
            lambda number=number: states(service, job_id)[number - 1 : number] == [AttemptState.RUNNING], "a claim"
        )
        kill(service.horse(worker))
        service.wait(lambda number=number: states(service, job_id)[number - 1] == AttemptState.LOST, "a lost attempt")
    job = service.finish(job_id)
    assert job.state == JobState.DEAD
    assert job.error["code"] == "worker-lost"
    assert "SIGKILL" in job.error["message"]
    assert worker.poll() is None


def test_sigterm_finishes_the_experiment_and_gives_the_attempt_back(
    service: Any, model_id: str, calibration_id: str, grid: Any
) -> None:
    job_id = start_sweep(service, model_id, calibration_id, grid(6, N_CONFIGS))
    worker = service.worker()
    for _ in range(5):
        worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=60) == 0
    assert states(service, job_id)[0] == AttemptState.RELEASED
    service.worker()
    assert_complete(service, job_id)
    assert states(service, job_id) == [AttemptState.RELEASED, AttemptState.SUCCEEDED]


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


def test_redis_forgets_everything(service: Any, model_id: str, calibration_id: str, grid: Any) -> None:
    """FLUSHALL while attempts are queued and one runs: all of them end well."""
    running = start_sweep(service, model_id, calibration_id, grid(9, N_CONFIGS))
    params = {"model_id": model_id, "calibration_id": calibration_id, "configs": grid(10, 1)}
    waiting = [service.submit(JobKind.SWEEP, params) for _ in range(3)]
    service.wait(lambda: all(a.enqueued_at for job in waiting for a in service.attempts(job)), "the relay")
    client = redis.Redis.from_url(service.environment["BITBUDGET_REDIS_URL"])
    client.flushall()
    client.close()
    for job_id in (running, *waiting):
        assert service.finish(job_id).state == JobState.SUCCEEDED
    assert_complete(service, running)
    recorded = [service.job(job_id).result["recorded"] for job_id in waiting]
    assert sorted(recorded) == [0, 0, N_MATRICES]


def test_an_attempt_delivered_twice_runs_once(service: Any, model_id: str, calibration_id: str, grid: Any) -> None:
    params = {"model_id": model_id, "calibration_id": calibration_id, "configs": grid(11, 1)}
    job_id = service.submit(JobKind.SWEEP, params)
    service.finish(job_id)
    (attempt,) = service.attempts(job_id)
    service.relay._delete_hash(attempt.id)
    service.relay._send(attempt.id)
    follower = service.submit(JobKind.SWEEP, params)
    assert service.finish(follower).result["reused"] == N_MATRICES
    assert states(service, job_id) == [AttemptState.SUCCEEDED]
    assert service.measured(job_id) == N_MATRICES


def test_an_absent_gpu_is_an_error(service: Any) -> None:
    worker = service.start_worker(BITBUDGET_DEVICE="RTX 3090")
    assert worker.wait(timeout=60) == 2
    service.workers.remove(worker)
    log = service.logs()
    assert "the device 'RTX 3090' is not here" in log
    assert "never falls back" in log


def test_workers_are_known(service: Any, model_id: str, calibration_id: str) -> None:
    from results_db.tables import Worker

    alive = service.worker()
    with service.database.read() as session:
        rows = session.scalars(select(Worker)).all()
    assert [row.pid for row in rows if row.state == "up"] == [alive.pid]
    row = next(row for row in rows if row.pid == alive.pid)
    assert (row.device, row.device_kind, row.hostname) == ("cpu", "cpu", os.uname().nodename)
    assert row.versions["torch"]
