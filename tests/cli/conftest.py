"""Helpers of the command line's tests: run a command in this process, the API in it too, or a real stack beside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from cli.api import Api
from cli.main import app
from cli.stack.plan import environment
from cli.stack.record import StackRecord, running_stack
from results_db import Database
from results_db.settings import Settings
from server.app import create_app


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class RunningStack:
    """A `bitbudget up` in a process of its own."""

    process: subprocess.Popen[str]
    folder: Path

    @property
    def var_dir(self) -> Path:
        return self.folder / "var"

    @property
    def record(self) -> StackRecord:
        record = running_stack(self.var_dir)
        assert record is not None, "no stack runs"
        return record


@pytest.fixture(scope="session")
def until() -> Callable[..., None]:
    """Wait for a state, with a deadline."""

    def wait(done: Callable[[], Any], within_s: float = 90.0) -> None:
        deadline = time.monotonic() + within_s
        while not done():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def gone() -> Callable[[int], bool]:
    """Whether a process has ended, be it reaped or not."""

    def has_ended(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        stat = Path(f"/proc/{pid}/stat")
        return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"

    return has_ended


@pytest.fixture
def bitbudget(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Outcome]:
    """Run ``bitbudget …`` in an empty working directory with a var folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("BITBUDGET_SERVER", "BITBUDGET_DATABASE_URL", "BITBUDGET_REDIS_URL", "KEEP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BITBUDGET_VAR_DIR", str(tmp_path / "var"))
    # nothing listens on the discard port: a test that forgets its server fails at once
    monkeypatch.setenv("BITBUDGET_PORT", "9")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["bitbudget", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            app(prog_name="bitbudget")
        captured = capsys.readouterr()
        return Outcome(int(exit_.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def embedded(tmp_path: Path, sqlite_template: Path) -> Iterator[Database]:
    """The database of ./var: migrated and empty."""
    path = tmp_path / "var" / "bitbudget.db"
    path.parent.mkdir()
    shutil.copy(sqlite_template, path)
    database = Database(f"sqlite:///{path}")
    yield database
    database.dispose()


# --- the API in this process ---


@contextmanager
def serving(database: Path, *roots: Path) -> Iterator[TestClient]:
    """The real application on a SQLite file. Its Redis is nowhere, and nobody works: jobs stay queued."""
    settings = Settings(
        database_url=f"sqlite:///{database}",
        redis_url=f"unix://{database.parent}/none.sock",
        var_dir=database.parent,
        model_roots=roots,
    )
    with TestClient(create_app(settings, run_loop=False, page=False), base_url="http://localhost") as client:
        yield client


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, repo: Path, shared_folder: Path
) -> Iterator[TestClient]:
    """One application for a module's tests. Model roots: what lies beside the checkout, and the shared data."""
    path = Path(shutil.copy(sqlite_template, tmp_path_factory.mktemp("served")))
    with serving(path, repo.parent, shared_folder) as client:
        yield client


@pytest.fixture
def ask(
    bitbudget: Callable[..., Outcome], served: TestClient, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """``bitbudget …`` with the application in this process as its server."""

    def answer(request: httpx.Request) -> httpx.Response:
        headers = {**request.headers, "accept-encoding": "identity"}
        found = served.request(request.method, str(request.url), content=request.content, headers=headers)
        return httpx.Response(found.status_code, content=found.content, headers=dict(found.headers))

    monkeypatch.setattr("cli.options.Api", partial(Api, transport=httpx.MockTransport(answer)))
    monkeypatch.setenv("BITBUDGET_SERVER", "http://localhost")
    return bitbudget


# --- a stack beside it ---


@pytest.fixture(scope="session")
def start_cli() -> Callable[..., subprocess.Popen[str]]:
    """Start ``python -m cli …`` as a process of its own, in a folder of its own."""

    def start(*arguments: str, folder: Path, **extra: str) -> subprocess.Popen[str]:
        env = environment(Settings(var_dir=folder / "var", port=0)) | extra
        return subprocess.Popen(
            [sys.executable, "-m", "cli", *arguments],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def start_stack(
    start_cli: Callable[..., subprocess.Popen[str]], until: Callable[..., None]
) -> Callable[..., RunningStack]:
    """Start `bitbudget up` on a free port and wait until it is ready."""

    def start(folder: Path, **extra: str) -> RunningStack:
        process = start_cli("up", folder=folder, **extra)
        stack = RunningStack(process, folder)

        def ready() -> bool:
            record = running_stack(stack.var_dir)
            return process.poll() is not None or (record is not None and record.ready)

        until(ready)
        if process.poll() is not None:
            pytest.fail(f"the stack did not start: {process.communicate()}")
        return stack

    return start


@pytest.fixture(scope="session")
def stack(start_stack: Callable[..., RunningStack], repo: Path, shared_folder: Path) -> Iterator[RunningStack]:
    """One stack for all tests that leave it as they found it. Model roots: its folder, what lies beside the checkout,
    and the shared data wherever it is."""
    with tempfile.TemporaryDirectory(prefix="bb-") as folder:
        roots = os.pathsep.join([folder, str(repo.parent), str(shared_folder)])
        running = start_stack(Path(folder), BITBUDGET_MODEL_ROOTS=roots)
        yield running
        running.process.terminate()
        running.process.communicate(timeout=90)


@pytest.fixture
def run(
    bitbudget: Callable[..., Outcome], stack: RunningStack, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """``bitbudget …`` with the session's stack as its server."""
    monkeypatch.setenv("BITBUDGET_SERVER", stack.record.url)
    return bitbudget


@pytest.fixture
def model(shared_data: Path) -> str:
    return str(shared_data / "models" / "stories260K")


@pytest.fixture
def text(shared_data: Path) -> str:
    return str(shared_data / "tinystories" / "tinystories_val.txt")
