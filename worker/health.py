"""``python -m worker.health``: whether the workers that run here are alive, by their rows; for containers and scripts.

"Here" is this machine's process namespace: in a container it holds one worker, beside a checkout perhaps several.
Exit codes: 0 every worker here is alive; 1 one is not, or there is none; 3 the database cannot be used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from results_db import Database
from results_db.clock import db_now
from results_db.settings import Settings
from results_db.tables import Worker
from worker.registration import ProcessId, runs_here


@dataclass(frozen=True, slots=True)
class Pulse:
    """A worker of this machine whose process is there, and how long ago it was heard of."""

    name: str
    #: seconds, by the database's clock
    age_s: float


def pulses(session: Session, me: ProcessId) -> list[Pulse]:
    """The workers whose rows do not say "down" and whose process lives where ``me`` lives."""
    now = session.scalars(select(db_now())).one()
    workers = session.scalars(select(Worker).where(Worker.state != "down")).all()
    return [Pulse(w.name, (now - w.heartbeat_at).total_seconds()) for w in workers if runs_here(w, me)]


def verdict(found: Sequence[Pulse], *, limit_s: float) -> str | None:
    """What is wrong, or None."""
    if not found:
        return "no worker that runs here is in the database"
    late = [f"{pulse.name} was last heard of {pulse.age_s:.0f} s ago" for pulse in found if pulse.age_s > limit_s]
    return "; ".join(late) or None


def main() -> int:
    """Say on stderr what is wrong; the exit code. A worker that was silent for a whole lease counts as not alive."""
    settings = Settings()
    me = ProcessId.of(os.getpid())
    if me is None:
        sys.stderr.write("this system does not say which processes run (no /proc)\n")
        return 1
    database = Database(settings.database_url)
    try:
        with database.read() as session:
            wrong = verdict(pulses(session, me), limit_s=settings.lease_s)
    except SQLAlchemyError as error:
        sys.stderr.write(f"the database cannot be used: {type(error).__name__}\n")
        return 3
    finally:
        database.dispose()
    if wrong is None:
        return 0
    sys.stderr.write(f"{wrong}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
