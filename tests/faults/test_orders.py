"""What people order while a job runs: cancel, though the job does not listen; drain; with the default settings."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from results_db.queue.submit import cancel_job, set_priority
from results_db.queue.workers import drain_worker
from results_db.settings import Settings
from results_db.states import AttemptState, JobKind, JobState
from results_db.tables import Worker
from tests.faults.misbehaving import ACTS, GO, PROGRAM
from tests.sweeps import states
from worker.registration import ProcessId

_DEFAULTS = Settings.model_fields
#: as an installation has them that sets nothing
AS_INSTALLED = {
    "BITBUDGET_LEASE_S": str(_DEFAULTS["lease_s"].default),
    "BITBUDGET_HEARTBEAT_S": str(_DEFAULTS["heartbeat_s"].default),
}


@pytest.fixture
def start(service: Any, plan_acts: Callable[..., None]) -> Callable[..., Any]:
    """``start(act)``: the only live worker, with the default settings, and a job that is in the middle of this act."""

    def begin(act: str) -> tuple[Any, str]:
        for worker in service.workers:
            worker.kill()
            worker.wait()
        worker = service.start_worker(program=PROGRAM, **AS_INSTALLED)
        plan_acts(act)
        job_id = service.submit(JobKind.PROBE, {})
        service.wait(lambda: not (service.folder / ACTS).read_text(), f"the act {act}")
        return worker, str(job_id)

    return begin


@pytest.mark.parametrize("act", ["hang", "hold-gil"])
def test_a_job_that_does_not_listen_is_cancelled(
    service: Any, start: Callable[..., Any], act: str, request: pytest.FixtureRequest
) -> None:
    """Its process is ended, and with it goes its device memory; the promise is ten seconds."""
    worker, job_id = start(act)
    horse = service.horse(worker)
    with service.database.write() as session:
        cancel_job(session, job_id)
    asked = time.monotonic()
    assert service.finish(job_id).state == JobState.CANCELLED
    request.node.user_properties.append(("seconds from cancel to cancelled", round(time.monotonic() - asked, 1)))
    service.wait(lambda: ProcessId.of(horse) is None, "the end of the process")
    assert len(states(service, job_id)) == 1
    assert worker.poll() is None
    # and the worker goes on
    (service.folder / ACTS).write_text("")
    assert service.finish(service.submit(JobKind.PROBE, {})).state == JobState.SUCCEEDED


def test_a_drained_worker_finishes_its_job_and_ends(service: Any, start: Callable[..., Any]) -> None:
    go: Path = service.folder / GO
    go.unlink(missing_ok=True)
    worker, job_id = start("dawdle")
    (attempt,) = service.attempts(job_id)
    later = service.submit(JobKind.PROBE, {})
    with service.database.write() as session:
        drain_worker(session, attempt.worker_id)
    go.touch()
    assert service.finish(job_id).state == JobState.SUCCEEDED
    service.wait(lambda: worker.poll() is not None, "the end of the worker")
    assert worker.returncode == 0
    assert states(service, later) == [AttemptState.QUEUED], "nothing more was taken, and nothing counted"
    with service.database.read() as session:
        row = session.get_one(Worker, attempt.worker_id)
    assert (row.state, row.drain_requested) == ("down", True)
    service.start_worker(program=PROGRAM, **AS_INSTALLED)
    assert service.finish(later).state == JobState.SUCCEEDED


def test_an_idle_worker_hears_that_it_is_drained(service: Any, start: Callable[..., Any]) -> None:
    (service.folder / GO).touch()
    worker, job_id = start("dawdle")
    service.finish(job_id)
    with service.database.write() as session:
        drain_worker(session, service.attempts(job_id)[0].worker_id)
    service.wait(lambda: worker.poll() is not None, "the end of the worker")
    assert worker.returncode == 0


def test_an_urgent_job_goes_before_what_was_handed_over_long_ago(service: Any, start: Callable[..., Any]) -> None:
    go: Path = service.folder / GO
    go.unlink(missing_ok=True)
    start("dawdle")
    old = [service.submit(JobKind.PROBE, {}) for _ in range(3)]
    service.wait(lambda: all(service.attempts(job_id)[0].enqueued_at for job_id in old), "the relay")
    urgent = service.submit(JobKind.PROBE, {}, priority=5)
    with service.database.write() as session:
        set_priority(session, old[2], 9)
    service.wait(lambda: service.attempts(urgent)[0].enqueued_at, "the relay")
    go.touch()
    for job_id in (*old, urgent):
        assert service.finish(job_id).state == JobState.SUCCEEDED
    began = {job_id: service.job(job_id).started_at for job_id in (*old, urgent)}
    assert sorted(began, key=began.__getitem__) == [old[2], urgent, old[0], old[1]]
