"""RQ's worker as ours: whose attempt a dead horse loses, and what a forced stop gives back."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from rq.exceptions import StopRequested
from sqlalchemy import select

from results_db import Database
from results_db.queue.lease import claim_attempt
from results_db.queue.submit import pause_job, submit_job
from results_db.settings import Settings
from results_db.states import AttemptState, JobKind, JobState
from results_db.tables import Attempt, Job
from worker.current import CurrentWorker
from worker.device import CPU
from worker.main import _make_rq_worker
from worker.registration import Orders, register
from worker.rq_worker import BitbudgetWorker
from worker.stop import StopRequest

MakeWorker = Callable[[str], BitbudgetWorker]


@pytest.fixture
def make_worker(database: Database, redis_url: str, tmp_path: Path) -> MakeWorker:
    """A registered worker of this process that has not begun to work."""
    url = database.url.render_as_string(hide_password=False)
    settings = Settings(var_dir=tmp_path, database_url=url, redis_url=redis_url)

    def make(name: str) -> BitbudgetWorker:
        worker_id = register(database, name, CPU)
        return _make_rq_worker(CurrentWorker(worker_id, 1, settings, CPU, StopRequest()), name)

    return make


def claimed(database: Database, worker: BitbudgetWorker, *, max_attempts: int = 3) -> str:
    """A running attempt of a worker."""
    with database.write() as session:
        job = submit_job(session, JobKind.SWEEP, {}, max_attempts=max_attempts)
        attempt_id = session.scalars(select(Attempt.id).where(Attempt.job_id == job.id)).one()
        assert claim_attempt(session, attempt_id, worker_id=worker.current.id, lease_s=45)
    return attempt_id


def ends(database: Database, attempt_id: str) -> tuple[str, str]:
    """(state of the attempt, state of its job)."""
    with database.read() as session:
        attempt = session.get_one(Attempt, attempt_id)
        return attempt.state, session.get_one(Job, attempt.job_id).state


def die(worker: BitbudgetWorker, attempt_id: str) -> None:
    worker.horse_died(SimpleNamespace(id=attempt_id), 1, int(signal.SIGKILL), None)


def test_a_dead_horse_loses_its_own_attempt_and_no_other_worker_s(database: Database, make_worker: MakeWorker) -> None:
    """Delivered twice: the one whose horse died without a claim leaves the other's attempt alone."""
    one, two = make_worker("one"), make_worker("two")
    attempt_id = claimed(database, one)
    die(two, attempt_id)
    assert ends(database, attempt_id) == (AttemptState.RUNNING, JobState.RUNNING)
    die(one, attempt_id)
    assert ends(database, attempt_id) == (AttemptState.LOST, JobState.QUEUED)


def test_a_forced_stop_gives_back_what_this_worker_ran(
    database: Database, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uncounted: the only attempt of a job is no dead one. Other workers' and ended ones are left alone."""
    one, two = make_worker("one"), make_worker("two")
    mine, other, ended = claimed(database, one, max_attempts=1), claimed(database, two), claimed(database, one)
    die(one, ended)
    paused = claimed(database, one)
    with database.write() as session:
        pause_job(session, session.get_one(Attempt, paused).job_id)

    def told_twice(*_arguments: object, **_options: object) -> bool:
        raise SystemExit

    monkeypatch.setattr("rq.Worker.work", told_twice)
    with pytest.raises(SystemExit):
        one.work(burst=True)
    assert ends(database, mine) == (AttemptState.RELEASED, JobState.QUEUED)
    assert ends(database, other) == (AttemptState.RUNNING, JobState.RUNNING)
    assert ends(database, ended) == (AttemptState.LOST, JobState.QUEUED)
    assert ends(database, paused) == (AttemptState.RELEASED, JobState.PAUSED)


@pytest.mark.parametrize("swallowed", [False, True])
def test_a_signal_during_the_heartbeat_ends_the_worker(
    make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch, swallowed: bool
) -> None:
    """RQ raises an ordinary exception wherever the signal finds the parent: our own code took it for a database that
    does not answer, and the worker went on for ever."""
    worker = make_worker("one")

    def touch_when_told_to_stop(*_: object) -> Orders:
        with suppress(*[StopRequested] * swallowed):
            signal.raise_signal(signal.SIGTERM)
        return Orders(drain=False, cancelled=None)

    monkeypatch.setattr("worker.rq_worker.touch", touch_when_told_to_stop)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    worker._install_signal_handlers()
    try:
        with pytest.raises(StopRequested):
            worker.heartbeat()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert worker.asked_to_stop
