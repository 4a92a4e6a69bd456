"""The two probes, and the password that comes from a file."""

from __future__ import annotations

import os
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from pydantic import ValidationError
from sqlalchemy import make_url, update

from results_db import Database
from results_db.clock import utc_now
from results_db.settings import Settings
from results_db.tables import Worker
from server.health import __main__ as server_health
from tests.deploy.compose import read_image
from worker import health
from worker.device import CPU
from worker.registration import ProcessId, register, touch

# --- the worker's: by its row ---


@pytest.fixture
def me() -> ProcessId:
    process = ProcessId.of(os.getpid())
    assert process is not None
    return process


def _probe(database: Database, me: ProcessId, limit_s: float = 45.0) -> str | None:
    with database.read() as session:
        return health.verdict(health.pulses(session, me), limit_s=limit_s)


def test_a_worker_that_is_heard_of_is_alive(database: Database, me: ProcessId) -> None:
    assert _probe(database, me) == "no worker that runs here is in the database"
    register(database, "one", CPU)
    assert _probe(database, me) is None


def test_a_silent_worker_is_named(database: Database, me: ProcessId) -> None:
    register(database, "fresh", CPU)
    silent = register(database, "silent", CPU)
    with database.write() as session:
        session.execute(
            update(Worker).where(Worker.id == silent).values(heartbeat_at=utc_now() - timedelta(seconds=99))
        )
    said = _probe(database, me)
    assert said is not None
    assert "silent was last heard of 99 s ago" in said or "silent was last heard of 100 s ago" in said
    assert "fresh" not in said
    touch(database, silent)
    assert _probe(database, me) is None


def test_workers_elsewhere_and_stopped_ones_do_not_count(database: Database, me: ProcessId) -> None:
    stopped = register(database, "stopped", CPU)
    touch(database, stopped, state="down")
    other = register(database, "in another container", CPU)
    with database.write() as session:
        row = session.get_one(Worker, other)
        row.versions = {**row.versions, "process": {**me.to_dict(), "pid_namespace": "pid:[1]"}}
    assert _probe(database, me) == "no worker that runs here is in the database"


def test_a_row_whose_process_is_gone_does_not_count(database: Database, me: ProcessId) -> None:
    """A killed worker's number may belong to another process by now: it began at another time."""
    worker = register(database, "gone", CPU)
    with database.write() as session:
        row = session.get_one(Worker, worker)
        row.versions = {**row.versions, "process": {**me.to_dict(), "started": me.started + 1}}
    assert _probe(database, me) == "no worker that runs here is in the database"


def test_the_command_answers_by_its_exit_code(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BITBUDGET_DATABASE_URL", database_url)
    assert health.main() == 1
    assert "no worker" in capsys.readouterr().err
    register(database, "one", CPU)
    assert health.main() == 0


def test_a_database_that_is_not_there_is_told_without_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BITBUDGET_DATABASE_URL", "postgresql+psycopg://bitbudget:hush@127.0.0.1:9/bitbudget")
    assert health.main() == 3
    told = capsys.readouterr().err
    assert "database" in told
    assert "hush" not in told


# --- the server's: by /readyz ---


class _Canned(BaseHTTPRequestHandler):
    status, body = 200, b"{}"

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/readyz" else 404)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("status", "body", "code", "told"),
    [
        (200, b"{}", 0, ""),
        (503, b'{"checks": {"redis": {"ok": false, "detail": "does not answer"}, "loop": {"ok": true}}}', 1, "redis"),
        (503, b"<html>", 1, "<html>"),
        (503, b'{"status": "not ready"}', 1, "not ready"),
    ],
)
def test_the_servers_probe(
    status: int,
    body: bytes,
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    handler = type("Handler", (_Canned,), {"status": status, "body": body})
    with HTTPServer(("127.0.0.1", 0), handler) as canned:
        thread = Thread(target=canned.handle_request)
        thread.start()
        # a server that listens on every address is asked on loopback
        monkeypatch.setenv("BITBUDGET_HOST", "0.0.0.0")
        monkeypatch.setenv("BITBUDGET_PORT", str(canned.server_port))
        assert server_health.main() == code
        thread.join()
    assert told in capsys.readouterr().err


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BITBUDGET_PORT", "9")
    assert server_health.main() == 1
    assert "no server answers" in capsys.readouterr().err


# --- the password ---

URL = "postgresql+psycopg://bitbudget@postgres/bitbudget"


def test_the_password_comes_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("p@ss/wörd:1\n", encoding="utf-8")
    settings = Settings(database_url=URL, database_password_file=file)
    assert make_url(settings.database_url) == make_url(URL).set(password="p@ss/wörd:1")
    own = "postgresql+psycopg://bitbudget:own@postgres/bitbudget"
    assert Settings(database_url=own, database_password_file=file).database_url == own


@pytest.mark.parametrize(
    ("url", "content", "told"),
    [(URL, None, "cannot be read"), (URL, "\n", "is empty"), ("sqlite:////tmp/x.db", "p", "is for PostgreSQL")],
)
def test_a_password_that_cannot_be_had_is_an_error(url: str, content: str | None, told: str, tmp_path: Path) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValidationError, match=told):
        Settings(database_url=url, database_password_file=file)


def test_a_malformed_url_stays_the_error(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="write sqlite"):
        Settings(database_url="postgresql", database_password_file=tmp_path / "none")


def test_python_runs_both_as_modules() -> None:
    """As the images' HEALTHCHECKs name them."""
    assert read_image("server").probe == ["python", "-m", "server.health"]
    assert read_image("worker").probe == ["python", "-m", health.__name__]
