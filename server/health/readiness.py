"""The checks behind /readyz: what this server needs to do its work, each with the cure where it is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from results_db import Database
from results_db.clock import db_now, utc_now
from results_db.disk import free_bytes
from results_db.migrate import head_revision, present_revision
from results_db.queue.relay import due_attempts
from results_db.settings import Settings
from results_db.tables import Attempt, Worker
from server.loop import AdvanceLoop

#: bytes that must be free in the var folder: below this a SQLite database, its log and a Redis cannot go on
LEAST_FREE = 200_000_000
#: seconds that an attempt which is due may wait for its message to Redis
LONGEST_WAIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is as it should be, or not."""

    ok: bool
    #: for people: what was found, and the cure where it is not ok
    detail: str


def readiness(database: Database, loop: AdvanceLoop, settings: Settings) -> dict[str, Check]:
    """Every check by name. A database that is away fails the checks that ask it, and says so once."""
    checks: dict[str, Check] = {}
    for name, check in _DATABASE_CHECKS.items():
        try:
            checks[name] = check(database, loop)
        except SQLAlchemyError as error:
            checks["database"] = Check(False, f"the database does not answer: {type(error).__name__}")
            break
    return checks | {"redis": _redis(loop), "loop": _loop(loop), "disk": _disk(settings.var_dir)}


def _database(database: Database, loop: AdvanceLoop) -> Check:
    with database.read() as session:
        session.execute(select(1))
    return Check(True, f"{database.url.get_backend_name()} answers")


def _schema(database: Database, loop: AdvanceLoop) -> Check:
    present, head = present_revision(database), head_revision()
    if present != head:
        return Check(False, f"the schema is at {present}, this code needs {head}: start the server anew")
    return Check(True, f"schema {head}")


def _relay(database: Database, loop: AdvanceLoop) -> Check:
    """The most urgent attempt goes first: while it waits, nothing goes out."""
    told = loop.relay.last_contact_at
    if loop.leads and told is not None and (utc_now() - told).total_seconds() < LONGEST_WAIT_S:
        return Check(True, "attempts are handed to Redis")
    with database.read() as session:
        first = list(due_attempts(session, 1))
        late = session.scalar(
            select(Attempt.id).where(
                Attempt.id.in_(first),
                Attempt.enqueued_at.is_(None),
                func.coalesce(Attempt.available_at, Attempt.created_at) < db_now(-LONGEST_WAIT_S),
            )
        )
    if late is not None:
        return Check(
            False,
            f"attempt {late} has been due for over {LONGEST_WAIT_S:.0f} s and Redis was not told: see redis and loop",
        )
    return Check(True, "no attempt waits to be handed to Redis")


def _workers(database: Database, loop: AdvanceLoop) -> Check:
    """For information: jobs wait in order for a worker, so a server without one is ready."""
    with database.read() as session:
        n_up = session.scalar(select(func.count()).select_from(Worker).where(Worker.state == "up")) or 0
    if n_up == 0:
        return Check(True, "no worker is up: jobs wait until one is (python -m worker)")
    return Check(True, f"{n_up} workers are up" if n_up > 1 else "1 worker is up")


_DATABASE_CHECKS: dict[str, Callable[[Database, AdvanceLoop], Check]] = {
    "database": _database,
    "schema": _schema,
    "relay": _relay,
    "workers": _workers,
}


def _redis(loop: AdvanceLoop) -> Check:
    error = loop.relay.ping()
    if error is not None:
        return Check(False, f"Redis does not answer ({error}): jobs wait in the database until it does")
    return Check(True, "Redis answers")


def _loop(loop: AdvanceLoop) -> Check:
    if not loop.alive:
        return Check(False, "the advance loop does not run: start the server anew")
    if loop.last_error is not None:
        return Check(False, f"the advance loop's last turn failed: {loop.last_error}")
    if not loop.leads:
        return Check(True, "another server on this database turns the advance loop; this one stands by")
    return Check(True, "the advance loop turns")


def _disk(var_dir: Path) -> Check:
    free = free_bytes(var_dir)
    if free < LEAST_FREE:
        why = f"{free // 10**6} MB are free in {var_dir}, under {LEAST_FREE // 10**6}"
        return Check(False, f"{why}: make room (bitbudget gc, bitbudget doctor)")
    return Check(True, f"{free / 1e9:.1f} GB are free in the var folder")
