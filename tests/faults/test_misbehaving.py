"""Jobs that take their process with them: each leaves its cause behind, is tried again, and ends dead if it goes on."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient

from results_db.settings import Settings
from results_db.states import AttemptState, JobState
from server.app import create_app
from tests.faults.misbehaving import CGROUP, PROGRAM
from tests.sweeps import states

LOST, FAILED, SUCCEEDED = AttemptState.LOST, AttemptState.FAILED, AttemptState.SUCCEEDED

#: bytes that a horse may allocate in its cgroup
LIMIT = 64 << 20


@pytest.mark.representative
def test_a_job_that_exits(service: Any, misbehave: Callable[..., str]) -> None:
    job_id = misbehave("exit")
    worker = service.workers[-1]
    assert service.finish(job_id).state == JobState.SUCCEEDED
    lost, _ = service.attempts(job_id)
    assert (lost.state, lost.exit_code, lost.signal) == (LOST, 7, None)
    assert states(service, job_id) == [LOST, SUCCEEDED]
    assert worker.poll() is None


@pytest.mark.representative
def test_a_poison_job_dies_and_its_page_says_of_what(service: Any, misbehave: Callable[..., str]) -> None:
    """Three segmentation faults: dead, with what Python could still say on the job's page."""
    job_id = misbehave("segfault", "segfault", "segfault", max_attempts=3)
    job = service.finish(job_id)
    assert job.state == JobState.DEAD
    assert states(service, job_id) == [LOST, LOST, LOST]
    assert [attempt.signal for attempt in service.attempts(job_id)] == 3 * [signal.SIGSEGV]
    assert job.error["code"] == "worker-lost"
    settings = Settings(
        database_url=service.database.url.render_as_string(hide_password=False),
        redis_url=service.environment["BITBUDGET_REDIS_URL"],
        var_dir=service.folder,
    )
    with TestClient(create_app(settings, run_loop=False), base_url="http://127.0.0.1") as client:
        page = client.get(f"/jobs/{job_id}")
    assert page.status_code == 200
    assert "dead" in page.text
    assert "SIGSEGV" in page.text
    assert "in segfault" in page.text  # the function that did it
    # the queue goes on
    assert service.finish(misbehave()).state == JobState.SUCCEEDED


def test_an_error_of_the_job_s_own_is_final_and_on_its_page(service: Any, misbehave: Callable[..., str]) -> None:
    job = service.finish(misbehave("error"))
    assert job.state == JobState.FAILED
    assert states(service, job.id) == [FAILED]
    assert "this config is cursed" in job.error["message"]
    assert "in error" in job.error["traceback"]


@pytest.mark.parametrize("act", ["memory-error", "fill-address-space"])
def test_a_job_that_runs_out_of_memory_is_tried_once_more(
    service: Any, misbehave: Callable[..., str], act: str
) -> None:
    job_id = misbehave(act)
    assert service.finish(job_id).state == JobState.SUCCEEDED
    first, second = service.attempts(job_id)
    assert (first.state, first.error["code"], second.state) == (FAILED, "out-of-memory", SUCCEEDED)
    job = service.finish(misbehave(act, act))
    assert job.state == JobState.FAILED
    assert job.error["code"] == "out-of-memory"
    assert states(service, job.id) == [FAILED, FAILED]


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A memory cgroup (v1 or v2) with a limit; skips where this machine lets us make none."""
    root = Path("/sys/fs/cgroup")
    one = (root / "memory", ("memory.limit_in_bytes",))
    two = (root, ("memory.max",))
    base, (limit,) = one if one[0].is_dir() else two
    group = base / f"bitbudget-{uuid4().hex}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        try:
            (group / limit).write_text(str(LIMIT))
        except OSError as error:
            pytest.skip(f"the memory of a cgroup cannot be limited here: {error}")
        for swap in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
            if (group / swap).exists():
                (group / swap).write_text(str(LIMIT) if "memsw" in swap else "0")
        yield group
    finally:
        group.rmdir()


def test_the_kernel_s_out_of_memory_kill(service: Any, misbehave: Callable[..., str], small_group: Path) -> None:
    for worker in service.workers:
        worker.kill()
        worker.wait()
    service.start_worker(program=PROGRAM, **{CGROUP: str(small_group)})
    job_id = misbehave("fill-memory")
    assert service.finish(job_id).state == JobState.SUCCEEDED
    lost, succeeded = service.attempts(job_id)
    assert (lost.state, lost.signal, succeeded.state) == (LOST, signal.SIGKILL, SUCCEEDED)
    assert lost.peak_rss_bytes >= LIMIT
    assert service.workers[-1].poll() is None
