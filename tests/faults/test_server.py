"""kill -9 of the server: the worker goes on, and a server that is started again goes on with everything."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from results_db.states import AttemptState, JobState
from results_db.tables import Job, JobEvent
from tests.faults.redis_server import RedisServer, redis_server, redis_server_url
from tests.faults.server_process import PATIENCE_S, ServerProcess
from tests.sweeps import states

__all__ = ["redis_server", "redis_server_url"]  # fixtures


@pytest.fixture(scope="module")
def server(service: Any) -> Iterator[ServerProcess]:
    """The loops are this process's alone: these tests never call ``service.wait``, which turns loops of its own."""
    server = ServerProcess(service.repo, service.environment, service.folder / "server.log")
    server.start()
    service.start_worker()
    yield server
    server.close()


def until(happened: Callable[[], Any], what: str) -> Any:
    """Wait, and move nothing."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if value := happened():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE_S} s in vain for: {what}")


@pytest.fixture
def study(tiny_model: Path, text_path: Path) -> dict[str, Any]:
    """Calibrate and sweep by the worker; gates and a fit by the server's loop."""
    return {
        "name": "disturbed",
        "model": {"source": str(tiny_model)},
        "text": {"kind": "file", "path": str(text_path)},
        "calibration": {"samples": 16, "length": 32},
        "grid": {"codebook": "scalar", "b_q": [2, 3, 4], "rank": [0, 2, 4, 6], "factor_bits": 8},
        "phases": [1, 2],
        "on_no_go": "continue",
    }


def test_the_server_is_killed_in_the_middle_of_a_study(
    service: Any, server: ServerProcess, study: dict[str, Any]
) -> None:
    """With an open stream: who listens hears the rest, and nothing twice, from the server that follows."""
    study_id = server.post("/studies", {"config": study})["id"]
    heard: list[int] = []
    with server.client.stream("GET", f"/api/v1/studies/{study_id}/events") as stream:
        lines = stream.iter_lines()
        for line in lines:
            if line.startswith("id:"):
                heard.append(int(line.removeprefix("id:")))
            if line.startswith("data:") and _is_running_sweep(service, json.loads(line.removeprefix("data:"))):
                break
        server.kill()
        with pytest.raises(httpx.TransportError):
            list(lines)
    server.start()
    until(lambda: server.get(f"/studies/{study_id}")["state"] != "running", "the study's end")
    found = server.get(f"/studies/{study_id}")
    assert found["state"] == "succeeded", found
    assert {job["state"] for job in found["jobs"]} == {JobState.SUCCEEDED.value}
    with service.database.read() as session:
        jobs = session.scalars(select(Job).where(Job.study_id == study_id)).all()
        every = session.scalars(select(JobEvent.id).where(JobEvent.study_id == study_id).order_by(JobEvent.id)).all()
    for job in jobs:
        assert [state for state in states(service, job.id) if state != AttemptState.SUCCEEDED] == []
    answer = server.client.get(f"/api/v1/studies/{study_id}/events", headers={"Last-Event-ID": str(heard[-1])})
    heard += [int(line.removeprefix("id:")) for line in answer.text.splitlines() if line.startswith("id:")]
    assert heard == list(every)


def _is_running_sweep(service: Any, event: dict[str, Any]) -> bool:
    if event.get("kind") != "progress" or "job_id" not in event:
        return False
    with service.database.read() as session:
        return bool(session.get_one(Job, event["job_id"]).kind == "sweep")


@pytest.mark.representative
def test_a_crash_between_commit_and_enqueue(
    service: Any, server: ServerProcess, redis_server: RedisServer, tiny_model: Path, text_path: Path
) -> None:
    """Redis is away at submit: the job is accepted and kept. The server dies with it; both come back, and it runs."""
    model_id = server.post("/models", {"source": str(tiny_model)})["id"]
    redis_server.kill()
    text = {"kind": "file", "path": str(text_path)}
    asking = {"model_id": model_id, "text": text, "windows": {"length": 32, "count": 16, "seed": 9}}
    answer = server.client.post("/api/v1/calibrations", json=asking)
    assert answer.status_code == 202
    job_id = answer.json()["id"]
    until(lambda: server.client.get("/readyz").status_code == 503, "a server that says that Redis is away")
    assert "redis" in server.client.get("/readyz").text.lower()
    server.kill()
    (attempt,) = service.attempts(job_id)
    assert (attempt.state, attempt.enqueued_at) == (AttemptState.QUEUED, None)
    redis_server.start()
    server.start()
    until(lambda: server.get(f"/jobs/{job_id}")["state"] == "succeeded", "the calibration")
    assert states(service, job_id) == [AttemptState.SUCCEEDED]
