"""Copies of a whole database, both ways: the same rows bit by bit, or nothing at all."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Table, insert, select, text, update
from sqlalchemy.exc import OperationalError

from results_db import Database
from results_db.base import Base
from results_db.clock import db_now, utc_now
from results_db.copy import CannotCopy, Progress, copy_database
from results_db.copy.content import ContentHash
from results_db.copy.unused import unused
from results_db.migrate import downgrade, upgrade
from results_db.queue.leader import Leader
from results_db.queue.lease import claim_attempt
from results_db.queue.submit import submit_job
from results_db.states import JobKind
from results_db.tables import Attempt, Job, JobEvent, Measurement, Model, Worker
from tests.conftest import NewDatabase
from tests.rows import count, fill

TABLES = Base.metadata.sorted_tables
#: on SQLite and PostgreSQL, from one to the other
WAYS = [("sqlite", "postgresql"), ("postgresql", "sqlite"), ("sqlite", "sqlite"), ("postgresql", "postgresql")]


@pytest.fixture
def target(request: pytest.FixtureRequest, new_database: NewDatabase, tmp_path: Path) -> Iterator[Database]:
    """A database without rows, of the backend that the test's parameter names."""
    folder = tmp_path / "target"
    folder.mkdir()
    database = Database(new_database(request.param, folder))
    yield database
    database.dispose()


def rows(database: Database, table: Table) -> list[tuple[Any, ...]]:
    with database.engine.connect() as connection:
        return sorted((tuple(row) for row in connection.execute(select(table))), key=repr)


both_ways = pytest.mark.parametrize(("database_backend", "target"), WAYS, indirect=True)
to_the_other = pytest.mark.parametrize(("database_backend", "target"), WAYS[:2], indirect=True)


@both_ways
def test_every_table_arrives_as_it_was(database: Database, target: Database) -> None:
    counts = fill(database, tables=TABLES)
    seen: list[Progress] = []
    report = copy_database(database, target, hold=True, say=seen.append)
    assert {table.name: table.n_rows for table in report.tables} == counts == count(target)
    for table in TABLES:
        assert rows(target, table) == rows(database, table), table.name
    assert (seen[-1].done, seen[-1].total) == (2 * report.n_rows, 2 * report.n_rows)
    assert {progress.step for progress in seen} == {"copy", "check"}


@to_the_other
def test_new_rows_get_new_ids(database: Database, target: Database) -> None:
    fill(database, tables=TABLES)
    with database.engine.begin() as connection:
        # the last measurement was retired: its id must never be given again
        top = connection.execute(
            insert(Measurement.__table__).values(  # type: ignore[arg-type]
                {c.name: v for c, v in _another_measurement(connection) if c.name != "id"}
            )
        ).inserted_primary_key[0]
        connection.execute(text("DELETE FROM measurements WHERE id = :id"), {"id": top})
    copy_database(database, target, hold=True)
    with target.write() as session:
        job = submit_job(session, JobKind.PROBE, {})
        session.flush()
        event = session.scalars(select(JobEvent).where(JobEvent.job_id == job.id)).one()
        assert event.id > 30
    with target.engine.begin() as connection:
        values = {c.name: v for c, v in _another_measurement(connection) if c.name != "id"}
        given = connection.execute(insert(Measurement.__table__).values(values)).inserted_primary_key[0]  # type: ignore[arg-type]
    assert given == max(top, 30) + 1


def _another_measurement(connection: Any) -> list[tuple[Any, Any]]:
    table = Measurement.__table__
    row = connection.execute(select(table).limit(1)).one()
    return [(c, "another" if c.name == "config_hash" else v) for c, v in zip(table.columns, row, strict=True)]


@to_the_other
def test_a_target_with_rows_is_left_alone(database: Database, target: Database) -> None:
    upgrade(target)
    with target.write() as session:
        submit_job(session, JobKind.PROBE, {})
    with pytest.raises(CannotCopy, match="not empty: its table jobs") as caught:
        copy_database(database, target, hold=True)
    assert "never been used" in caught.value.cure
    assert count(target)["jobs"] == 1


@to_the_other
def test_a_copy_that_dies_leaves_an_empty_target_and_can_be_begun_again(database: Database, target: Database) -> None:
    fill(database, tables=TABLES)

    class Killed(Exception):
        pass

    def die(progress: Progress) -> None:
        if progress.step == "check":
            raise Killed

    with pytest.raises(Killed):
        copy_database(database, target, hold=True, say=die)
    assert set(count(target).values()) == {0}
    copy_database(database, target, hold=True)
    assert count(target) == count(database)


_COPY_AND_HANG = """
import signal, sys
from results_db import Database
from results_db.copy import copy_database

def hang(progress):
    if progress.step == "check":
        print("checking", flush=True)
        signal.pause()

copy_database(Database(sys.argv[1]), Database(sys.argv[2]), hold=True, say=hang)
"""


@to_the_other
def test_a_copy_that_is_killed_leaves_an_empty_target(database: Database, target: Database, repo: Path) -> None:
    fill(database, tables=TABLES)
    urls = [each.url.render_as_string(hide_password=False) for each in (database, target)]
    argv = [sys.executable, "-c", _COPY_AND_HANG, *urls]
    process = subprocess.Popen(argv, cwd=repo, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "checking\n"
    process.kill()
    process.communicate()
    assert set(count(target).values()) == {0}
    copy_database(database, target, hold=True)
    assert count(target) == count(database)


@to_the_other
def test_nobody_writes_to_the_source_of_a_move(database: Database, target: Database) -> None:
    fill(database, tables=TABLES)
    refused = []

    def try_to_write(progress: Progress) -> None:
        if refused:
            return
        with database.engine.connect() as connection:
            impatience = "PRAGMA busy_timeout=1" if database.is_sqlite else "SET lock_timeout = '10ms'"
            connection.exec_driver_sql(impatience)
            with pytest.raises(OperationalError, match=r"locked|lock timeout") as caught:
                connection.execute(update(Job).values(priority=1))
            refused.append(caught.value)

    copy_database(database, target, hold=True, say=try_to_write)
    assert refused


@to_the_other
def test_a_backup_shows_one_moment_while_others_write(database: Database, target: Database) -> None:
    with database.write() as session:
        submit_job(session, JobKind.PROBE, {})
    written = []

    def write(progress: Progress) -> None:
        with database.write() as session:
            written.append(submit_job(session, JobKind.PROBE, {}).id)

    report = copy_database(database, target, hold=False, say=write)
    assert written
    assert {table.name: table.n_rows for table in report.tables}["jobs"] == 1


@to_the_other
def test_a_source_of_an_older_schema_is_refused(database: Database, target: Database) -> None:
    downgrade(database, "0004")
    with pytest.raises(CannotCopy, match="schema 0004") as caught:
        copy_database(database, target, hold=True)
    assert "db upgrade" in caught.value.cure


def test_a_database_that_a_server_or_worker_uses_is_not_at_rest(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with unused(database):
        pass
    leader = Leader(database)
    # PostgreSQL sees a moment later that the session before has ended
    deadline = time.monotonic() + 30
    while not leader.hold():
        assert time.monotonic() < deadline
    with monkeypatch.context() as patch:
        patch.setattr("results_db.copy.unused._PATIENCE_S", 0.1)
        with pytest.raises(CannotCopy, match="a server runs"), unused(database):
            pass
    leader.release()
    worker = {"hostname": "here", "pid": 1, "device": "cpu", "device_kind": "cpu", "state": "up", "versions": {}}
    with database.write() as session:
        session.add(Worker(id="wrk_1", name="busy", heartbeat_at=utc_now(), **worker))
    with pytest.raises(CannotCopy, match="a minute ago: busy"), unused(database):
        pass
    with database.write() as session:
        session.execute(update(Worker).values(heartbeat_at=utc_now() - timedelta(minutes=2)))
        job = submit_job(session, JobKind.PROBE, {})
        session.flush()
        attempt_id = session.scalars(select(Attempt.id).where(Attempt.job_id == job.id)).one()
        assert claim_attempt(session, attempt_id, worker_id="wrk_1", lease_s=60) is not None
    with pytest.raises(CannotCopy, match=f"holds the attempt {attempt_id}"), unused(database):
        pass
    with database.write() as session:
        session.execute(update(Attempt).values(lease_expires_at=db_now(-1)))
    with unused(database):
        server = Leader(database)
        assert not server.hold(), "a server that starts meanwhile must wait"


def test_a_database_is_not_copied_onto_itself(database: Database) -> None:
    other = Database(database.url.render_as_string(hide_password=False))
    with pytest.raises(CannotCopy, match="same database"):
        copy_database(database, other, hold=True)
    other.dispose()


#: column of jobs, value, what is said of it, what is mended to (None: nothing)
UNSTORABLE: list[tuple[str, Any, str, Any]] = [
    ("result", {"loss": [1.0, math.nan]}, "nan, which JSON does not have", {"loss": [1.0, None]}),
    ("result", {"loss": -math.inf}, "-inf", {"loss": None}),
    ("params", {"a\ud800": "b"}, r"\\ud800", {"a\ufffd": "b"}),
    ("params", {"a": "x\x00y"}, r"\\x00", {"a": "x\ufffdy"}),
    ("step", "x\x00y", r"\\x00", "x\ufffdy"),
    ("priority", 2**40, "does not fit a column of 32 bits", None),
]


@pytest.mark.parametrize(("database_backend", "target"), WAYS[:1], indirect=True)
def test_what_postgresql_cannot_hold_is_named_and_mended_only_when_asked(database: Database, target: Database) -> None:
    def write(job_id: str, column: str, value: Any) -> None:
        with database.write() as session:
            session.execute(update(Job).where(Job.id == job_id).values({column: value}))

    with database.write() as session:
        ids = [submit_job(session, JobKind.PROBE, {}).id for _ in UNSTORABLE]
    for job_id, (column, value, words, instead) in zip(ids, UNSTORABLE, strict=True):
        with database.read() as session:
            before = getattr(session.get_one(Job, job_id), column)
        write(job_id, column, value)
        named = rf"jobs\.{column} of the row id = '{job_id}' holds .*{words}"
        with pytest.raises(CannotCopy, match=named) as caught:
            copy_database(database, target, hold=True)
        assert ("--mend" in caught.value.cure) == (instead is not None)
        if instead is None:
            with pytest.raises(CannotCopy, match=named):
                copy_database(database, target, hold=True, mend=True)
        assert set(count(target).values()) == {0}
        write(job_id, column, before)
    mendable = [
        (id_, column, value, instead) for id_, (column, value, _, instead) in zip(ids, UNSTORABLE, strict=True)
    ][:-1]
    for job_id, column, value, _ in mendable:
        write(job_id, column, value)
    report = copy_database(database, target, hold=True, mend=True)
    assert sum(table.n_mended for table in report.tables) == len(mendable) == 5
    with target.read() as session:
        for job_id, column, _, instead in mendable:
            assert getattr(session.get_one(Job, job_id), column) == instead


@pytest.mark.parametrize(("database_backend", "target"), WAYS[1:2], indirect=True)
def test_a_nan_column_is_refused_by_sqlite_which_would_store_null(database: Database, target: Database) -> None:
    fill(database, tables=TABLES)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE gates SET value = 'NaN'"))
    with pytest.raises(CannotCopy, match=r"gates\.value .* NaN") as caught:
        copy_database(database, target, hold=True)
    assert "--mend" in caught.value.cure
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE measurements SET raw_mse = 'NaN'"))
    with pytest.raises(CannotCopy, match=r"measurements\.raw_mse .* NaN") as caught:
        copy_database(database, target, hold=True, mend=True)
    assert "--mend" not in caught.value.cure, "a column that must have a value"


def test_what_arrives_otherwise_than_it_was_sent_is_not_kept(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database, tables=TABLES)
    target = Database(f"sqlite:///{tmp_path / 'copy.db'}")
    upgrade(target)
    with target.engine.begin() as connection:
        connection.execute(
            text("CREATE TRIGGER spoil AFTER INSERT ON models BEGIN UPDATE models SET name = name || '!'; END")
        )
    with pytest.raises(CannotCopy, match="models did not arrive as it was sent"):
        copy_database(database, target, hold=True)
    assert set(count(target).values()) == {0}
    target.dispose()


def content(*rows: list[Any]) -> str:
    found = ContentHash()
    found.add(rows)
    return found.hex


def test_the_hash_of_a_table_knows_its_rows_and_not_their_order() -> None:
    assert content(["a", 1], ["b", 2]) == content(["b", 2], ["a", 1])
    assert content(["a", 1], ["b", 2]) != content(["a", 2], ["b", 1])
    assert content(["a"]) != content(["a"], ["a"])
    assert content(["ab", "c"]) != content(["a", "bc"])
    assert content([None]) != content([""])
    assert content([1]) != content([True])
    assert content([0.1]) != content([math.nextafter(0.1, 1)])


def test_numbers_in_json_count_by_their_value() -> None:
    assert content([{"x": 1e16}]) == content([{"x": 10**16}])
    assert content([{"x": 1.7e308}]) == content([{"x": 17 * 10**307}])
    assert content([{"x": -0.0}]) == content([{"x": 0}])
    assert content([{"x": 2**53}]) != content([{"x": 2**53 + 1}])
    assert content([{"x": 1}]) != content([{"x": True}])
    assert content([{"x": 0.1}]) != content([{"x": 0.10000000000000002}])
    assert content([{"x": 1, "y": 2}]) == content([{"y": 2, "x": 1}])
    assert content([{"x": math.nan}]) != content([{"x": 0}])


def test_a_model_is_read_as_it_was_written(database: Database, tmp_path: Path) -> None:
    """Through the ORM, as the server reads it."""
    with database.write() as session:
        session.add(Model(id="mod_1", name="m", source="s", matrices=[{"layer_idx": 0}], original_bytes=2**40))
    target = Database(f"sqlite:///{tmp_path / 'copy.db'}")
    copy_database(database, target, hold=True)
    with database.read() as here, target.read() as there:
        assert here.get_one(Model, "mod_1").as_dict() == there.get_one(Model, "mod_1").as_dict()
    target.dispose()
