"""Read-only SQL: what is allowed works, what is hostile is refused and changes nothing, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cli.query.result import Limits, QueryRefused
from cli.query.run import run_query
from results_db import Database
from results_db.tables import Token

LIMITS = Limits(rows=5, seconds=20)

HOSTILE = [
    "INSERT INTO tokens (id, name, token_hash, scope, created_at) VALUES ('t2', 'x', 'y', 'admin', '2026-01-01')",
    "UPDATE tokens SET name = 'changed'",
    "DELETE FROM tokens",
    "DROP TABLE tokens",
    "DROP VIEW errors",
    "CREATE TABLE mine (a int)",
    "CREATE TEMP TABLE mine (a int)",
    "SELECT 1; DELETE FROM tokens",
    "SELECT 1; SELECT 2",
    "BEGIN",
    "COMMIT",
    "",
    "   -- nothing but a comment",
    "SELECT * FROM no_such_table",
    "nonsense",
]
HOSTILE_SQLITE = [
    "PRAGMA writable_schema = 1",
    "PRAGMA journal_mode = DELETE",
    "ATTACH DATABASE 'other.db' AS other",
    "VACUUM",
    "SELECT load_extension('x')",
    "SELECT length(zeroblob(900000000))",
    "WITH d AS (SELECT 1) DELETE FROM tokens",
]
HOSTILE_POSTGRESQL = [
    "SET default_transaction_read_only = off",
    "SET TRANSACTION READ WRITE",
    "SELECT set_config('transaction_read_only', 'off', true)",
    "SELECT 1; COMMIT; DELETE FROM tokens",
    "COPY tokens TO PROGRAM 'cat'",
    "COPY (SELECT 1) TO STDOUT",
    "WITH gone AS (DELETE FROM tokens RETURNING id) SELECT * FROM gone",
    "SELECT nextval('job_events_id_seq')",
    "SELECT lo_create(0)",
    "DO $$ BEGIN DELETE FROM tokens; END $$",
    "CALL anything()",
    "TRUNCATE tokens",
]
ENDLESS = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
    "postgresql": "SELECT pg_sleep(3600)",
}


@pytest.fixture
def filled(database: Database) -> Database:
    """A database with one row to lose."""
    with database.write() as session:
        session.add(Token(id="t1", name="keep", token_hash="h", scope="read"))
    return database


@pytest.fixture
def ask(filled: Database) -> Callable[..., Any]:
    url = filled.url.render_as_string(hide_password=False)
    return lambda sql, limits=LIMITS: run_query(url, sql, limits)


def test_a_select_brings_columns_and_rows(ask: Callable[..., Any]) -> None:
    result = ask("SELECT id, name FROM tokens")
    assert (result.columns, result.rows, result.cut) == (("id", "name"), [("t1", "keep")], False)


def test_the_contract_views_can_be_asked(ask: Callable[..., Any]) -> None:
    result = ask("SELECT layer_idx, projection, b_q, rank, calibration_weighted_error FROM errors WHERE b_q = 2;")
    assert result.columns == ("layer_idx", "projection", "b_q", "rank", "calibration_weighted_error")


def test_values_functions_and_common_table_expressions_work(ask: Callable[..., Any]) -> None:
    assert ask("WITH a(x) AS (VALUES (1), (2)) SELECT sum(x), upper('ok') FROM a").rows[0][1] == "OK"


def test_percent_signs_and_colons_are_text(ask: Callable[..., Any]) -> None:
    assert ask("SELECT 'a%b' AS x WHERE 'a:b' LIKE 'a%'").rows == [("a%b",)]


def test_more_rows_than_asked_for_are_cut_and_said_to_be(ask: Callable[..., Any]) -> None:
    result = ask("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20) SELECT i FROM n")
    assert (len(result.rows), result.cut) == (5, True)


@pytest.mark.parametrize("sql", HOSTILE)
def test_hostile_queries_are_refused(ask: Callable[..., Any], filled: Database, sql: str) -> None:
    _refused(ask, filled, sql)


@pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
@pytest.mark.parametrize("sql", HOSTILE_SQLITE)
def test_hostile_sqlite_is_refused(ask: Callable[..., Any], filled: Database, sql: str) -> None:
    _refused(ask, filled, sql)


@pytest.mark.parametrize("database_backend", ["postgresql"], indirect=True)
@pytest.mark.parametrize("sql", HOSTILE_POSTGRESQL)
def test_hostile_postgresql_is_refused(ask: Callable[..., Any], filled: Database, sql: str) -> None:
    _refused(ask, filled, sql)


def test_an_endless_query_is_ended(ask: Callable[..., Any], filled: Database) -> None:
    endless = ENDLESS[filled.url.get_backend_name()]
    with pytest.raises(QueryRefused, match=r"longer than 0\.2 s"):
        ask(endless, Limits(rows=5, seconds=0.2))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite:///nowhere/none.db", "no database at"),
        ("sqlite://", "names no file"),
        ("mysql://localhost/x", "no queries on 'mysql'"),
        ("not a url", "is no database URL"),
        ("postgresql+psycopg://nobody@127.0.0.1:9/none", "does not answer"),
    ],
)
def test_a_wrong_url_is_named(url: str, says: str) -> None:
    with pytest.raises(QueryRefused, match=says):
        run_query(url, "SELECT 1", LIMITS)


def _refused(ask: Callable[..., Any], filled: Database, sql: str) -> None:
    with pytest.raises(QueryRefused):
        ask(sql)
    with filled.read() as session:
        assert [token.name for token in session.query(Token)] == ["keep"]
