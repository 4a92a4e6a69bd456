"""What a worker's death costs: nothing. Each fault on both databases, with a real Redis and real processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from results_db.queue.lease import reap_expired
from results_db.states import AttemptState, JobKind, JobState
from results_db.tables import Attempt, Measurement
from server.loop import AdvanceLoop
from tests.faults.misbehaving import PROGRAM
from tests.faults.signals import freeze, kill
from tests.service import LEASE_S
from tests.sweeps import N_CONFIGS, N_MATRICES, assert_complete, start_sweep, states
from worker.registration import ProcessId


@pytest.mark.representative
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


@pytest.mark.representative
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


@pytest.mark.representative
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


def test_a_whole_worker_that_was_frozen_is_fenced(service: Any, model_id: str, calibration_id: str, grid: Any) -> None:
    """A laptop's lid: parent and horse stand still past the lease, another worker takes over, then they wake up."""
    job_id = start_sweep(service, model_id, calibration_id, grid(13, N_CONFIGS))
    frozen = service.worker()
    horse = service.horse(frozen)
    freeze(service, frozen.pid)
    freeze(service, horse)
    try:
        service.wait(lambda: states(service, job_id)[0] == AttemptState.LOST, "the reaper")
        stopped_at = service.measured(job_id)
        first = service.attempts(job_id)[0]
        other = service.start_worker()
        assert_complete(service, job_id)
    finally:
        os.kill(horse, signal.SIGCONT)
        os.kill(frozen.pid, signal.SIGCONT)
    service.wait(lambda: ProcessId.of(horse) is None, "the fenced horse's end")
    assert frozen.poll() is None
    with service.database.read() as session:
        by_first = select(func.count()).select_from(Measurement).where(Measurement.attempt_id == first.id)
        assert session.scalar(by_first) == stopped_at
    assert states(service, job_id) == [AttemptState.LOST, AttemptState.SUCCEEDED]
    other.terminate()
    assert other.wait(timeout=60) == 0
    service.workers.remove(other)


@pytest.mark.parametrize("act", ["kill-horse-before-finish", "kill-worker-before-finish"])
def test_a_crash_between_the_last_result_and_the_finish(
    service: Any, plan_acts: Callable[..., None], model_id: str, calibration_id: str, grid: Any, act: str
) -> None:
    """Every cell is recorded and the job is not: the next attempt finds the cells and measures none again."""
    plan_acts(act)
    configs = grid(14 if "horse" in act else 15, 2)
    params = {"model_id": model_id, "calibration_id": calibration_id, "configs": configs}
    job_id = service.submit(JobKind.SWEEP, params)
    service.wait(lambda: states(service, job_id)[0] == AttemptState.LOST, "the crash")
    assert service.measured(job_id) == 2 * N_MATRICES
    service.worker()
    job = service.finish(job_id)
    assert job.state == JobState.SUCCEEDED
    assert (job.result["recorded"], job.result["reused"]) == (0, 2 * N_MATRICES)
    assert states(service, job_id) == [AttemptState.LOST, AttemptState.SUCCEEDED]
    assert service.measured(job_id) == 2 * N_MATRICES


def shift_leases(session: Session, job_id: str, by: timedelta) -> None:
    """As if the database's clock had jumped the other way: a lease stands in the table as it was written."""
    for attempt in session.scalars(select(Attempt).where(Attempt.job_id == job_id, Attempt.state == "running")):
        attempt.lease_expires_at += by
    session.flush()


def test_the_clock_jumps_ahead(service: Any, model_id: str, calibration_id: str, grid: Any) -> None:
    """By an hour: every lease has run out. At worst an attempt is lost; nothing is doubled."""
    job_id = start_sweep(service, model_id, calibration_id, grid(16, N_CONFIGS))
    horse = service.horse(service.worker())
    with service.database.write() as session:
        # one transaction: no heartbeat comes between
        shift_leases(session, job_id, -timedelta(hours=1))
        reap_expired(session)
    assert states(service, job_id)[0] == AttemptState.LOST
    service.wait(lambda: ProcessId.of(horse) is None, "the fenced horse's end")
    assert_complete(service, job_id)
    assert states(service, job_id) == [AttemptState.LOST, AttemptState.SUCCEEDED]


def test_the_clock_jumps_back(service: Any, model_id: str, calibration_id: str, grid: Any) -> None:
    """By an hour: the lease of a worker that is dead by then does not outlive it by that hour."""
    job_id = start_sweep(service, model_id, calibration_id, grid(17, N_CONFIGS))
    worker = service.worker()
    horse = service.horse(worker)
    worker.kill()
    worker.wait()
    service.wait(lambda: ProcessId.of(horse) is None, "the horse's death")
    with service.database.write() as session:
        shift_leases(session, job_id, timedelta(hours=1))
    loop = AdvanceLoop(service.database, service.relay, lease_s=LEASE_S)

    def lost() -> bool:
        loop.turn()
        return states(service, job_id)[0] == AttemptState.LOST

    service.wait(lost, "the reaper")
    service.worker()
    assert_complete(service, job_id)
    assert states(service, job_id) == [AttemptState.LOST, AttemptState.SUCCEEDED]


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


@pytest.mark.representative
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


@pytest.mark.representative
def test_sigterm_again_and_again_costs_no_attempt(service: Any, misbehave: Callable[..., str]) -> None:
    """A job that does not come to an end is given back all the same; it has one attempt in all."""
    job_id = misbehave("hang", max_attempts=1)
    service.wait(lambda: states(service, job_id) == [AttemptState.RUNNING], "a claim")
    worker = service.workers[-1]
    horse = service.horse(worker)

    def ended() -> bool:
        """RQ takes the first signal, overlooks those of the same second, and ends at the next."""
        worker.send_signal(signal.SIGTERM)
        return worker.poll() is not None

    service.wait(ended, "the end of a worker that is told again and again")
    assert worker.returncode == 0
    assert ProcessId.of(horse) is None
    assert states(service, job_id)[0] == AttemptState.RELEASED
    service.start_worker(program=PROGRAM)
    assert service.finish(job_id).state == JobState.SUCCEEDED
    assert states(service, job_id) == [AttemptState.RELEASED, AttemptState.SUCCEEDED]
