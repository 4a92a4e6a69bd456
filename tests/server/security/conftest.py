"""One guarded server for all attacks of a module: every request needs a token, whoever sends it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI
from fastapi.testclient import TestClient

from results_db import Database
from results_db.settings import Settings
from results_db.tokens import Scope, create_token
from server.app import create_app


@dataclass(frozen=True)
class Server:
    """An application on a database of its own, and a token of each scope."""

    app: FastAPI
    settings: Settings
    database: Database
    #: the event loop of all requests: otherwise each would start one, and threads, of its own
    portal: BlockingPortal
    tokens: dict[Scope, str] = field(default_factory=dict)

    def client(self, scope: Scope | None = None, *, peer: str = "127.0.0.1", host: str = "localhost") -> TestClient:
        """A client at this address that sends the token of this scope, or none."""
        headers = {} if scope is None else {"Authorization": f"Bearer {self.tokens[scope]}"}
        client = TestClient(
            self.app, base_url=f"http://{host}", headers=headers, client=(peer, 50_000), follow_redirects=False
        )
        client.portal = self.portal
        return client


Make = Callable[..., Server]


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture(scope="module")
def make_server(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory, portal: BlockingPortal
) -> Iterator[Make]:
    """A server with these settings, on SQLite; its lifespan is not run: nothing here needs its loop."""
    databases: list[Database] = []

    def make(**settings: object) -> Server:
        folder = tmp_path_factory.mktemp("guarded")
        shutil.copy(sqlite_template, folder / "bitbudget.db")
        (folder / "models").mkdir()
        chosen = Settings(
            var_dir=folder,
            database_url=f"sqlite:///{folder / 'bitbudget.db'}",
            redis_url=f"unix://{folder}/none.sock",
            model_roots=(folder / "models",),
            **settings,  # type: ignore[arg-type]
        )
        app = create_app(chosen, run_loop=False)
        server = Server(app, chosen, app.state.database, portal)
        with server.database.write() as session:
            for scope in Scope:
                server.tokens[scope] = create_token(session, scope.value, scope).secret
        databases.append(server.database)
        return server

    yield make
    for database in databases:
        database.dispose()


@pytest.fixture(scope="module")
def guarded(make_server: Make) -> Server:
    """Every request needs a token."""
    return make_server(require_token=True)


@pytest.fixture(scope="module")
def at_home(make_server: Make) -> Server:
    """As a single user runs it: on loopback, without tokens."""
    return make_server()
