"""Whether a database is at rest: nobody's server, nobody's worker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import select

from results_db.clock import db_now
from results_db.copy.errors import CannotCopy
from results_db.engine import Database
from results_db.queue.leader import Leader
from results_db.queue.workers import SILENT_S, is_silent
from results_db.states import AttemptState
from results_db.tables import Attempt, Worker

#: PostgreSQL sees a moment later that a server has ended
_PATIENCE_S = 1.5
_CURE = "stop every server and worker of this database (bitbudget down), then try again"


@contextmanager
def unused(database: Database) -> Iterator[None]:
    """Nobody uses the database, and no server begins to for as long as the block lasts.

    Raises:
        CannotCopy: names the server, worker or attempt that does.
    """
    leader = Leader(database)
    deadline = time.monotonic() + _PATIENCE_S
    while not leader.hold():
        if time.monotonic() > deadline:
            raise CannotCopy("a server runs on this database: its advance loop holds the lock", _CURE)
        time.sleep(0.05)
    try:
        _refuse_workers(database)
        yield
    finally:
        leader.release()


def _refuse_workers(database: Database) -> None:
    with database.read() as session:
        running = session.scalars(
            select(Attempt.id).where(Attempt.state == AttemptState.RUNNING.value, Attempt.lease_expires_at > db_now())
        ).all()
        if running:
            raise CannotCopy(f"a worker runs on this database: it holds the attempt {running[0]}", _CURE)
        # one that has said nothing for a minute is gone, whatever its row says
        alive = session.scalars(select(Worker.name).where(Worker.state == "up", ~is_silent())).all()
        if alive:
            raise CannotCopy(
                f"a worker runs on this database, or did a minute ago: {', '.join(sorted(alive))}",
                f"{_CURE}; one that was killed counts as gone after {SILENT_S:.0f} s",
            )
