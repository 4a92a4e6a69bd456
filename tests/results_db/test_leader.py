"""One of several servers turns the loop, and the next one does when it ends, however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from results_db import Database
from results_db.queue.leader import Leader

#: holds the right until it is killed
_HOLDER = """
import sys
from results_db import Database
from results_db.queue.leader import Leader
leader = Leader(Database(sys.argv[1]))
assert leader.hold()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def second(database_url: str) -> Iterator[Database]:
    """Another server's database object."""
    database = Database(database_url)
    yield database
    database.dispose()


def test_one_leads_and_the_other_stands_by(database: Database, second: Database) -> None:
    one, two = Leader(database), Leader(second)
    assert [one.hold(), two.hold(), one.hold(), two.hold()] == [True, False, True, False]
    one.release()
    assert [two.hold(), one.hold()] == [True, False]
    two.release()
    two.release()


@pytest.mark.quick_fault
def test_kill_9_of_the_leader_hands_over(database: Database, database_url: str, repo: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, database_url], cwd=repo, **pipes)
    leader = Leader(database)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert not leader.hold()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        deadline = time.monotonic() + 20
        while not leader.hold():
            assert time.monotonic() < deadline, "the dead leader still holds the right"
    finally:
        holder.kill()
        holder.wait()
        for pipe in (holder.stdin, holder.stdout):
            assert pipe is not None
            pipe.close()
        leader.release()


@pytest.mark.parametrize("database_backend", ["postgresql"], indirect=True)
def test_a_leader_whose_session_was_ended_knows(database: Database, second: Database) -> None:
    """PostgreSQL restarted, or it ended the session of a frozen leader: the right is anybody's."""
    one, two = Leader(database), Leader(second)
    assert one.hold()
    with second.engine.connect() as connection:
        here = "(SELECT oid FROM pg_database WHERE datname = current_database())"
        holders = f"SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND database = {here}"
        connection.execute(text(f"SELECT pg_terminate_backend(pid) FROM ({holders}) AS holders"))
    deadline = time.monotonic() + 20
    while not two.hold():
        assert time.monotonic() < deadline
    assert not one.hold()
    two.release()
    assert one.hold()
    one.release()


@pytest.mark.parametrize("database_backend", ["postgresql"], indirect=True)
def test_a_frozen_leaders_session_ends_by_itself(database: Database) -> None:
    leader = Leader(database)
    assert leader.hold()
    assert leader._connection is not None
    assert leader._connection.scalar(text("SHOW idle_session_timeout")) == "2min"
    leader.release()
