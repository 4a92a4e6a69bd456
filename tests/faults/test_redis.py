"""Redis is the doorbell: it may forget, vanish and come back, and ring twice; nothing is lost or done twice."""

from __future__ import annotations

from typing import Any

import redis

from results_db.states import AttemptState, JobKind, JobState
from tests.sweeps import N_CONFIGS, N_MATRICES, assert_complete, start_sweep, states


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
