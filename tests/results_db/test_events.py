"""Who follows events by their ids hears each that was committed, once, whatever the order of the commits."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from results_db import Database
from results_db.queue.events import events_after, newest_event, record_event, settled_event
from results_db.queue.transitions import get_job
from results_db.tables import JobEvent

N_WRITERS, N_TRANSACTIONS = 4, 25


def _note(session: Session, job_id: str) -> None:
    record_event(session, get_job(session, job_id), "note")
    session.flush()


def _write(database: Database, job_id: str, seed: int) -> None:
    """Transactions of several events, some in savepoints, some undone in part or as a whole."""
    chance = random.Random(seed)
    for _ in range(N_TRANSACTIONS):
        with database.write() as session:
            for _ in range(chance.randint(1, 3)):
                if chance.random() < 0.4:
                    with session.begin_nested() as savepoint:
                        _note(session, job_id)
                        if chance.random() < 0.5:
                            savepoint.rollback()
                else:
                    _note(session, job_id)
            if chance.random() < 0.2:
                session.rollback()


def test_a_follower_hears_each_event_once_while_many_write(queue: Any) -> None:
    database, job_id = queue.database, queue.submit()
    writers = [threading.Thread(target=_write, args=(database, job_id, seed)) for seed in range(N_WRITERS)]
    for writer in writers:
        writer.start()
    heard: list[int] = []
    after, going_on = 0, True
    while going_on:
        going_on = any(writer.is_alive() for writer in writers)
        with database.read() as session:
            settled = settled_event(session)
        with database.read() as session:
            heard += [event.id for event in events_after(session, after, up_to=settled, limit=10_000)]
        after = max(after, settled)
    with database.read() as session:
        assert heard == list(session.scalars(select(JobEvent.id).order_by(JobEvent.id)))
        assert heard[-1] == newest_event(session) <= settled_event(session)


@pytest.mark.parametrize("database_backend", ["postgresql"], indirect=True)
def test_a_savepoint_that_was_undone_has_announced_nothing_for_what_follows(queue: Any) -> None:
    """PostgreSQL lets go of the locks of a savepoint with the savepoint."""
    database, job_id = queue.database, queue.submit()
    with database.read() as session:
        before = settled_event(session)
    with database.write() as slow:
        with slow.begin_nested() as savepoint:
            _note(slow, job_id)
            savepoint.rollback()
        _note(slow, job_id)
        with database.write() as quick:
            _note(quick, job_id)
        with database.read() as session:
            # the id that was undone is settled: nothing will ever be there
            assert before <= settled_event(session) < newest_event(session) - 1
            assert events_after(session, before, up_to=settled_event(session)) == []


def test_nothing_is_settled_before_the_first_event(database: Database) -> None:
    with database.read() as session:
        assert settled_event(session) == newest_event(session) == 0
