"""Redis is the doorbell: it may forget, vanish and come back, and ring twice; nothing is lost or done twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from results_db.states import AttemptState, JobKind, JobState
from tests.faults.misbehaving import ACTS, PROGRAM
from tests.faults.redis_server import RedisServer, redis_server, redis_server_url
from tests.sweeps import N_CONFIGS, N_MATRICES, assert_complete, start_sweep, states

__all__ = ["redis_server", "redis_server_url"]  # fixtures


@pytest.fixture(autouse=True)
def _up(redis_server: RedisServer) -> Iterator[None]:
    """Each test finds it running and leaves it running."""
    if not redis_server.is_up:
        redis_server.start()
    yield
    if not redis_server.is_up:
        redis_server.start()


@pytest.fixture
def wait_in_redis(service: Any, model_id: str, calibration_id: str) -> Callable[..., list[str]]:
    """``wait_in_redis(configs, n)``: n sweeps of the same cells that Redis was told of."""

    def submit(configs: list[dict[str, Any]], n: int) -> list[str]:
        params = {"model_id": model_id, "calibration_id": calibration_id, "configs": configs}
        jobs = [service.submit(JobKind.SWEEP, params) for _ in range(n)]
        service.wait(lambda: any(a.enqueued_at for job in jobs for a in service.attempts(job)), "the relay")
        return jobs

    return submit


def assert_measured_once(service: Any, jobs: list[str]) -> None:
    """All succeed in one attempt each, and together they measured every cell once."""
    for job_id in jobs:
        assert service.finish(job_id).state == JobState.SUCCEEDED
        assert states(service, job_id) == [AttemptState.SUCCEEDED]
    recorded = [service.job(job_id).result["recorded"] for job_id in jobs]
    assert sorted(recorded) == [*(len(jobs) - 1) * [0], N_MATRICES]


@pytest.mark.representative
def test_redis_forgets_everything(
    service: Any,
    redis_server: RedisServer,
    model_id: str,
    calibration_id: str,
    grid: Any,
    wait_in_redis: Callable[..., list[str]],
) -> None:
    """FLUSHALL while attempts are queued and one runs: all of them end well."""
    running = start_sweep(service, model_id, calibration_id, grid(9, N_CONFIGS))
    waiting = wait_in_redis(grid(10, 1), 3)
    redis_server.flush()
    assert_complete(service, running)
    assert states(service, running) == [AttemptState.SUCCEEDED]
    assert_measured_once(service, waiting)


def test_redis_is_killed_and_comes_back(
    service: Any,
    redis_server: RedisServer,
    model_id: str,
    calibration_id: str,
    grid: Any,
    wait_in_redis: Callable[..., list[str]],
) -> None:
    """Killed and started again from its append-only file, while a job runs and others wait in it."""
    running = start_sweep(service, model_id, calibration_id, grid(31, N_CONFIGS))
    waiting = wait_in_redis(grid(32, 1), 3)
    redis_server.kill()
    redis_server.start()
    assert_complete(service, running)
    assert states(service, running) == [AttemptState.SUCCEEDED]
    assert_measured_once(service, waiting)


def test_redis_is_away_while_a_job_runs(
    service: Any, redis_server: RedisServer, model_id: str, calibration_id: str, grid: Any
) -> None:
    """The job ends well without it, and the same worker hears of the next when it is back."""
    running = start_sweep(service, model_id, calibration_id, grid(33, N_CONFIGS))
    worker = service.worker()
    redis_server.kill()
    assert_complete(service, running)
    assert states(service, running) == [AttemptState.SUCCEEDED]
    params = {"model_id": model_id, "calibration_id": calibration_id, "configs": grid(34, 1)}
    submitted = service.submit(JobKind.SWEEP, params)
    service.step()
    assert [attempt.enqueued_at for attempt in service.attempts(submitted)] == [None]
    redis_server.start()
    assert service.finish(submitted).state == JobState.SUCCEEDED
    assert states(service, submitted) == [AttemptState.SUCCEEDED]
    assert worker.poll() is None


def test_a_worker_starts_while_redis_is_away(
    service: Any, redis_server: RedisServer, model_id: str, calibration_id: str, grid: Any
) -> None:
    redis_server.kill()
    worker = service.start_worker()
    try:
        params = {"model_id": model_id, "calibration_id": calibration_id, "configs": grid(35, 1)}
        job_id = service.submit(JobKind.SWEEP, params)
        service.wait(lambda: "Redis does not answer" in service.logs(), "the new worker's complaint")
        redis_server.start()
        assert service.finish(job_id).state == JobState.SUCCEEDED
        assert worker.poll() is None
    finally:
        worker.terminate()
        worker.wait()
        service.workers.remove(worker)


@pytest.mark.representative
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


def test_a_relay_that_dies_before_it_notes_a_delivery(
    service: Any, model_id: str, calibration_id: str, grid: Any
) -> None:
    """Between RQ's answer and the database's: the next turn rings again, and the attempt runs once."""
    params = {"model_id": model_id, "calibration_id": calibration_id, "configs": grid(36, 1)}
    job_id = service.submit(JobKind.SWEEP, params)
    (attempt,) = service.attempts(job_id)
    service.relay._send(attempt.id)
    assert service.attempts(job_id)[0].enqueued_at is None
    assert service.finish(job_id).result["recorded"] == N_MATRICES
    assert states(service, job_id) == [AttemptState.SUCCEEDED]


@pytest.mark.parametrize("act", ["kill-horse-before-claim", "kill-worker-before-claim"])
def test_what_rq_remembers_of_a_lost_delivery_strands_nothing(
    service: Any, misbehave: Callable[..., str], act: str
) -> None:
    """Delivered, and the process killed before its claim: RQ holds the attempt for failed or started, under a hash that
    lingers; the database holds it for queued. It is rung for again."""
    job_id = misbehave(act)
    acts = service.folder / ACTS
    service.wait(lambda: not acts.read_text(), "the kill")
    if act.startswith("kill-worker"):
        service.workers[-1].wait()
        service.start_worker(program=PROGRAM)
    assert service.finish(job_id).state == JobState.SUCCEEDED
    assert states(service, job_id) == [AttemptState.SUCCEEDED]
