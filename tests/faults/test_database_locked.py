"""Somebody holds the database's lock for longer than most timeouts: jobs wait, and nobody loses anything."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg

from results_db.states import AttemptState, JobState
from tests.service import LEASE_S
from tests.sweeps import N_CONFIGS, assert_complete, start_sweep, states

#: seconds; a backup, a VACUUM or a forgotten psql
HELD_S = 21.0


@contextmanager
def _locked(service: Any) -> Iterator[None]:
    """All writes wait: SQLite's one write lock, on PostgreSQL the tables that a running job writes."""
    url = service.database.url
    if service.database.is_sqlite:
        with closing(sqlite3.connect(url.database, timeout=30, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            yield
            connection.execute("ROLLBACK")
    else:
        with psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False)) as connection:
            connection.execute("LOCK TABLE jobs, attempts, measurements, job_events IN ACCESS EXCLUSIVE MODE")
            yield
            connection.rollback()


def _hold(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.05)


def test_a_lock_of_twenty_seconds_costs_a_default_lease_nothing(
    service: Any, worker_with: Callable[..., None], model_id: str, calibration_id: str, grid: Any
) -> None:
    worker_with(BITBUDGET_LEASE_S="45", BITBUDGET_HEARTBEAT_S="5")
    job_id = start_sweep(service, model_id, calibration_id, grid(41, N_CONFIGS))
    with _locked(service):
        _hold(HELD_S)
    assert_complete(service, job_id)
    assert states(service, job_id) == [AttemptState.SUCCEEDED]


def test_a_lock_that_outlasts_the_lease(
    service: Any, worker_with: Callable[..., None], model_id: str, calibration_id: str, grid: Any
) -> None:
    """The heartbeat waits for the lock as the reaper does: whoever comes first, every cell is measured once."""
    worker_with(BITBUDGET_LEASE_S=str(LEASE_S), BITBUDGET_HEARTBEAT_S="0.2")
    job_id = start_sweep(service, model_id, calibration_id, grid(42, N_CONFIGS))
    with _locked(service):
        _hold(LEASE_S + 2)
    assert_complete(service, job_id)
    assert states(service, job_id)[-1] == AttemptState.SUCCEEDED
    assert set(states(service, job_id)[:-1]) <= {AttemptState.LOST}
    assert service.job(job_id).state == JobState.SUCCEEDED
