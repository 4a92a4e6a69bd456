"""Migrations with rows in every table, from every release that ever was; several at once; killed in the middle."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from fastapi.testclient import TestClient
from sqlalchemy import inspect, text

from results_db import Database
from results_db.errors import SchemaTooNew
from results_db.migrate import (
    MIGRATION_LOCK,
    alembic_config,
    downgrade,
    head_revision,
    present_revision,
    upgrade,
)
from results_db.settings import Settings
from results_db.views import VIEWS
from server.app import create_app
from tests.rows import count, fill

REVISIONS = [f"{number:04d}" for number in range(1, int(head_revision()) + 1)]


@pytest.fixture
def empty(empty_database_url: str) -> Iterator[Database]:
    database = Database(empty_database_url)
    yield database
    database.dispose()


def url_of(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


@pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
def test_revisions_are_one_line(empty: Database) -> None:
    script = ScriptDirectory.from_config(alembic_config(empty))
    assert script.get_heads() == [REVISIONS[-1]]
    assert [revision.revision for revision in script.walk_revisions()] == REVISIONS[::-1]


def test_down_and_up_again_with_rows_in_every_table(empty: Database) -> None:
    """Rows of tables that the older schema has as well come back; nothing stands in the way of a step."""
    upgrade(empty)
    counts = fill(empty)
    kept = dict(counts)
    for revision in REVISIONS[-2::-1]:
        downgrade(empty, revision)
        there = count(empty)
        kept = {name: n for name, n in kept.items() if name in there}
        assert {name: there[name] for name in kept} == kept, revision
    assert len(kept) > 15, "most tables are as old as the first release"
    upgrade(empty)
    there = count(empty)
    assert {name: there[name] for name in kept} == kept
    downgrade(empty, "base")
    assert count(empty) == {}
    upgrade(empty)
    assert set(count(empty).values()) == {0}


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_a_database_of_every_release_is_read_by_this_one(empty: Database, revision: str, tmp_path: Path) -> None:
    upgrade(empty, revision)
    counts = fill(empty, n=2)
    settings = Settings(database_url=url_of(empty), redis_url="unix:///nowhere.sock", var_dir=tmp_path / "var")
    app = create_app(settings, run_loop=False, page=False)
    with TestClient(app, base_url="http://localhost", client=("127.0.0.1", 50000)) as client:
        assert present_revision(empty) == REVISIONS[-1], "the server brought it up to date"
        now = count(empty)
        # 0004 gave two tables the names that say what they hold
        names = {"sensitivities": "sensitivity_anchors", "allocation_items": "allocation_choices"}
        for name, n in counts.items():
            assert now[name if name in now else names[name]] == n, name
        for path in ("models", "calibrations", "measurements", "fits", "allocations", "studies", "jobs", "gates"):
            answer = client.get(f"/api/v1/{path}")
            assert answer.status_code == 200, (path, answer.text)
            assert len(answer.json()["items"]) == 2, path
    with empty.engine.connect() as connection:
        for view in VIEWS:
            connection.execute(text(f"SELECT * FROM {view}")).all()


_UPGRADE = """
import sys
from results_db import Database, migrate

migrate.upgrade(Database(sys.argv[1]))
"""


def test_processes_that_upgrade_at_once_wait_for_each_other(empty: Database, repo: Path) -> None:
    argv = [sys.executable, "-c", _UPGRADE, url_of(empty)]
    processes = [subprocess.Popen(argv, cwd=repo, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert present_revision(empty) == REVISIONS[-1]
    assert set(VIEWS) <= set(inspect(empty.engine).get_view_names())


def test_threads_that_go_up_and_down_at_once_leave_one_whole_schema(database: Database) -> None:
    fill(database)
    errors: list[BaseException] = []

    def run(action: str) -> None:
        own = Database(url_of(database))
        try:
            for _ in range(2):
                upgrade(own) if action == "up" else downgrade(own, "0004")
        except BaseException as error:  # noqa: BLE001 - a thread's error would be lost
            errors.append(error)
        finally:
            own.dispose()

    threads = [threading.Thread(target=run, args=(action,)) for action in ("up", "down")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    upgrade(database)
    assert present_revision(database) == REVISIONS[-1]
    assert count(database)["jobs"] == 3


@pytest.mark.parametrize("database_backend", ["postgresql"], indirect=True)
def test_a_downgrade_waits_for_the_lock(database: Database) -> None:
    """SQLite has but one writer; PostgreSQL is asked who waits."""
    waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    thread = threading.Thread(target=downgrade, args=(database, "0004"))
    with database.engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": MIGRATION_LOCK})
        thread.start()
        deadline = time.monotonic() + 60
        while connection.scalar(waiting) == 0:
            assert time.monotonic() < deadline
        assert present_revision(database) == REVISIONS[-1]
        connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": MIGRATION_LOCK})
        connection.commit()
        thread.join()
    assert present_revision(database) == "0004"


_HANG = """
import signal, sys
from results_db import Database, migrate

def hang(dialect):
    print("every table is made", flush=True)
    signal.pause()

migrate.create_statements = hang
migrate.upgrade(Database(sys.argv[1]))
"""


def test_a_kill_in_the_middle_leaves_the_old_schema(empty: Database, repo: Path) -> None:
    upgrade(empty, "0003")
    fill(empty)
    before = count(empty)
    argv = [sys.executable, "-c", _HANG, url_of(empty)]
    process = subprocess.Popen(argv, cwd=repo, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "every table is made\n"
    process.kill()
    process.communicate()
    assert present_revision(empty) == "0003"
    assert count(empty) == before
    upgrade(empty)
    assert present_revision(empty) == REVISIONS[-1]


def test_a_schema_of_a_later_release_is_left_alone(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for action in (lambda: upgrade(database), lambda: downgrade(database, "0004")):
        with pytest.raises(SchemaTooNew, match=r"schema 9999, .* up to 0\d{3}: run the release that migrated it"):
            action()
    assert "errors" in inspect(database.engine).get_view_names(), "not even its views were touched"
