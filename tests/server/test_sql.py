"""The SQL console over HTTP: what it answers, what it refuses, and that it never runs more than it may."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from results_db.sql.canned import CANNED
from results_db.sql.contract import CONTRACT, SQL_CONTRACT_VERSION
from results_db.sql.result import Result
from server.sql import console as console_module

TYPE = "urn:bitbudget:problem:"
sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)


@pytest.fixture
def ask(client: TestClient, model: dict[str, Any]) -> Callable[..., httpx.Response]:
    """POST /sql on a database with one model in it."""
    return lambda query, **body: client.post("/api/v1/sql", json={"query": query} | body)


def slug(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return str(answer.json()["type"]).removeprefix(TYPE)


def test_columns_and_rows(ask: Callable[..., httpx.Response], model: dict[str, Any]) -> None:
    answer = ask(
        "SELECT id, n_layers AS n, n_layers AS n FROM models_overview WHERE id = :id", params={"id": model["id"]}
    )
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["columns"], body["rows"], body["truncated"]) == (["id", "n", "n"], [[model["id"], 3, 3]], None)
    assert body["limits"] == {"rows": 1000, "bytes": 5_000_000, "seconds": 1.5}


def test_no_row_has_columns_too(ask: Callable[..., httpx.Response]) -> None:
    assert ask("SELECT id, state FROM jobs_overview WHERE id = 'none'").json()["columns"] == ["id", "state"]


@sqlite_only
def test_csv_by_accept_and_by_format(client: TestClient, model: dict[str, Any]) -> None:
    body = {"query": "SELECT '=1+1' AS a, 2 AS b, NULL AS c"}
    by_accept = client.post("/api/v1/sql", json=body, headers={"Accept": "text/csv"})
    by_format = client.post("/api/v1/sql?format=csv", json=body)
    assert by_accept.text == by_format.text == "a,b,c\n'=1+1,2,\n"
    assert by_accept.headers["content-type"] == "text/csv; charset=utf-8"
    assert "x-truncated" not in by_accept.headers


def test_rows_and_bytes_are_capped_and_said_to_be(ask: Callable[..., httpx.Response]) -> None:
    query = "SELECT 'a text of some bytes' AS x UNION ALL SELECT 'b' UNION ALL SELECT 'c' UNION ALL SELECT 'ddddd'"
    cut = {
        name: ask(query, limits=limits).json()
        for name, limits in {"rows": {"rows": 2}, "bytes": {"bytes": 40}, "all": {"rows": 4}}.items()
    }
    assert {name: body["truncated"] for name, body in cut.items()} == {"rows": "rows", "bytes": "bytes", "all": None}
    assert (len(cut["rows"]["rows"]), len(cut["all"]["rows"])) == (2, 4)
    assert len(cut["bytes"]["rows"]) < 4


REFUSED = (
    ("DELETE FROM models", {}, "sql-not-allowed"),
    ("SELECT token_hash FROM tokens", {}, "sql-not-allowed"),
    ("SELECT nope FROM errors", {}, "sql-invalid"),
    ("SELECT :nope AS x", {}, "sql-invalid"),
    (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT sum(i) FROM n",
        {"limits": {"seconds": 0.3}},
        "sql-timeout",
    ),
    ("SELECT 1", {"params": {"a-b": 1}}, "sql-invalid"),
    ("SELECT 1", {"params": {"a": [1]}}, "invalid-request"),
    ("SELECT 1", {"limits": {"rows": 0}}, "invalid-request"),
    ("SELECT 1", {"extra": 1}, "invalid-request"),
    ("SELECT " + "1," * 60_000 + "1", {}, "invalid-request"),
)


def test_a_refusal_is_a_problem(ask: Callable[..., httpx.Response]) -> None:
    for query, more, says in REFUSED:
        answer = ask(query, **more)
        assert (answer.status_code, slug(answer)) == (422, says), query[:80]


@sqlite_only
def test_a_value_too_large_is_a_problem(ask: Callable[..., httpx.Response]) -> None:
    assert slug(ask("SELECT replace(printf('%.900000c', 'x'), 'x', 'yy') AS x")) == "sql-too-large"


@pytest.mark.parametrize("database_backend", ["postgresql"], indirect=True)
def test_a_reader_that_is_not_fenced_is_not_asked(ask: Callable[..., httpx.Response], app: FastAPI) -> None:
    with app.state.database.engine.begin() as connection:
        connection.exec_driver_sql("GRANT SELECT ON tokens TO bitbudget_reader")
    answer = ask("SELECT 1 AS x")
    assert (answer.status_code, slug(answer)) == (503, "sql-unavailable")
    assert "CREATE ROLE bitbudget_reader" in answer.json()["detail"]


@sqlite_only
def test_the_contract_is_served(client: TestClient) -> None:
    body = client.get("/api/v1/sql/views").json()
    assert body["version"] == SQL_CONTRACT_VERSION
    assert [view["name"] for view in body["items"]] == list(CONTRACT)
    assert all(column["meaning"] for view in body["items"] for column in view["columns"])
    assert [row["name"] for row in client.get("/api/v1/sql/queries").json()["items"]] == list(CANNED)


def test_a_canned_query_by_name(client: TestClient, model: dict[str, Any]) -> None:
    answer = client.post("/api/v1/sql/queries/worst-matrices", json={"params": {"bits": 3}})
    assert answer.status_code == 200, answer.text
    assert answer.json()["columns"][:3] == ["model", "layer_idx", "projection"]
    assert slug(client.post("/api/v1/sql/queries/none", json={})) == "not-found"
    assert slug(client.post("/api/v1/sql/queries/workers", json={"params": {"x": 1}})) == "sql-invalid"
    assert slug(client.post("/api/v1/sql/queries/sweep-cost", json={"params": {"since": "soon"}})) == "sql-invalid"


@sqlite_only
def test_a_third_query_is_told_to_wait(
    client: TestClient, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two queries that hold until they are let go; the third is refused, and after them the next runs."""
    let_go, inside = threading.Event(), threading.Semaphore(0)

    def hold(*_args: Any, **_kwargs: Any) -> Result:
        inside.release()
        assert let_go.wait(60)
        return Result(("x",), [[1]], None, 0.0)

    monkeypatch.setattr(console_module, "run_query", hold)
    answers: list[int] = []
    post = lambda: answers.append(client.post("/api/v1/sql", json={"query": "SELECT 1"}).status_code)  # noqa: E731
    threads = [threading.Thread(target=post) for _ in range(console_module.AT_ONCE)]
    for thread in threads:
        thread.start()
    try:
        assert all(inside.acquire(timeout=60) for _ in threads)
        refused = client.post("/api/v1/sql", json={"query": "SELECT 1"})
    finally:
        let_go.set()
        for thread in threads:
            thread.join(60)
    assert (refused.status_code, slug(refused), refused.headers["retry-after"]) == (429, "sql-busy", "1")
    assert answers == [200, 200]
    assert client.post("/api/v1/sql", json={"query": "SELECT 1"}).status_code == 200


@sqlite_only
def test_an_answer_is_not_kept_under_an_idempotency_key(client: TestClient, model: dict[str, Any]) -> None:
    for query, brings in (("SELECT 1 AS x", 1), ("SELECT 2 AS x", 2)):
        answer = client.post("/api/v1/sql", json={"query": query}, headers={"Idempotency-Key": "k"})
        assert answer.json()["rows"] == [[brings]]
    assert (
        slug(client.post("/api/v1/sql", json={"query": "SELECT 1"}, headers={"Idempotency-Key": ""}))
        == "invalid-request"
    )


def test_a_client_that_goes_away_ends_its_query(live: str, app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both slots are taken by endless queries whose clients leave; then the slots are free long before the time is
    over that the queries have."""
    app.state.sql_console._seconds = 120.0
    ended: list[str] = []
    done = threading.Semaphore(0)
    real = console_module.run_query

    def watched(*args: Any, **kwargs: Any) -> Result:
        try:
            return real(*args, **kwargs)
        except Exception as error:
            ended.append(getattr(error, "why", repr(error)))
            raise
        finally:
            done.release()

    monkeypatch.setattr(console_module, "run_query", watched)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    for _ in range(console_module.AT_ONCE):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{live}/api/v1/sql", json={"query": endless}, timeout=httpx.Timeout(60, read=0.5))
    assert all(done.acquire(timeout=60) for _ in range(console_module.AT_ONCE))
    assert ended == ["stopped"] * console_module.AT_ONCE
    assert httpx.post(f"{live}/api/v1/sql", json={"query": "SELECT 1 AS x"}, timeout=60).json()["rows"] == [[1]]
