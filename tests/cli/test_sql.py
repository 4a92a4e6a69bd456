"""`bitbudget sql`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from results_db import Database
from results_db.sql.contract import CONTRACT


@pytest.fixture
def database_file(tmp_path: Path) -> Path:
    path = tmp_path / "var" / "bitbudget.db"
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (a INTEGER, b TEXT, c REAL)")
        connection.execute("INSERT INTO t VALUES (1, '=1+1', 0.5), (2, NULL, 1e300)")
    connection.close()
    return path


def test_json(bitbudget: Callable, database_file: Path) -> None:
    outcome = bitbudget("sql", "SELECT a, b FROM t ORDER BY a", "--json")
    assert (outcome.code, outcome.json) == (0, [{"a": 1, "b": "=1+1"}, {"a": 2, "b": None}])


def test_csv_disarms_spreadsheet_formulas(bitbudget: Callable, database_file: Path) -> None:
    outcome = bitbudget("sql", "SELECT a, b FROM t ORDER BY a", "--format", "csv")
    assert outcome.out == "a,b\n1,'=1+1\n2,\n"


def test_table_and_the_note_that_rows_are_missing(bitbudget: Callable, database_file: Path) -> None:
    outcome = bitbudget("sql", "SELECT a FROM t ORDER BY a", "--rows", "1")
    assert outcome.code == 0
    assert outcome.out.split() == ["a", "1"]
    assert "only the first 1 rows" in outcome.err


def test_a_refusal_is_told_with_its_cure_and_no_traceback(bitbudget: Callable, database_file: Path) -> None:
    outcome = bitbudget("sql", "DELETE FROM t")
    assert outcome.code == 2
    assert outcome.err.startswith("error: only SELECT is allowed")
    assert "cure:" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_missing_database_is_named(bitbudget: Callable) -> None:
    outcome = bitbudget("sql", "SELECT 1")
    assert outcome.code == 2
    assert "there is no database at" in outcome.err


def test_views_lists_the_contract(bitbudget: Callable) -> None:
    rows = bitbudget("sql", "--views", "--json").json
    assert list(dict.fromkeys(row["view"] for row in rows)) == list(CONTRACT)
    assert all(row["meaning"] for row in rows)


def test_a_canned_query_with_a_parameter(bitbudget: Callable, embedded: Database) -> None:
    outcome = bitbudget("sql", "--query", "worst-matrices", "--param", "bits=3", "--json")
    assert (outcome.code, outcome.json) == (0, []), outcome.err
    assert "worst-matrices" in bitbudget("sql", "--query", "list").out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--query", "none"), "no canned query is called 'none'"),
        (("--query", "worst-matrices", "--param", "bits=two"), "parameter bits: give a whole number"),
        (("--query", "worst-matrices", "--param", "nope=1"), "has no parameter nope"),
        (("SELECT :x", "--param", "x"), "is not NAME=VALUE"),
        (("SELECT 1", "--query", "workers"), "give one query"),
        ((), "give one query"),
        (("SELECT token_hash FROM tokens",), "tokens.token_hash is not open"),
    ],
)
def test_a_wrong_request_is_told(bitbudget: Callable, embedded: Database, arguments: tuple, says: str) -> None:
    outcome = bitbudget("sql", *arguments)
    assert outcome.code == 2
    assert says in outcome.err


def test_a_parameter_is_a_value_and_never_sql(bitbudget: Callable, database_file: Path) -> None:
    outcome = bitbudget(
        "sql", "SELECT :x AS x, :n + 1 AS n", "--param", "x='; DROP TABLE t", "--param", "n=2", "--json"
    )
    assert outcome.json == [{"x": "'; DROP TABLE t", "n": 3}]


def test_what_an_administrator_runs_is_printed(bitbudget: Callable) -> None:
    outcome = bitbudget("sql", "--reader-role", "--database", "postgresql+psycopg://me@here/db")
    assert outcome.out == 'CREATE ROLE bitbudget_reader NOLOGIN NOINHERIT;\nGRANT bitbudget_reader TO "me";\n'


def test_the_server_can_be_asked_instead(ask: Callable) -> None:
    outcome = ask("sql", "--through-server", "SELECT :x AS x", "--param", "x=5", "--json")
    assert (outcome.code, outcome.json) == (0, [{"x": 5}]), outcome.err
    assert ask("sql", "--through-server", "--query", "workers").code == 0
    refused = ask("sql", "--through-server", "SELECT name FROM tokens")
    assert refused.code == 2
    assert "not open to queries" in refused.err


def test_database_option_wins(bitbudget: Callable, database_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    sqlite3.connect(other).close()
    other.touch()
    assert bitbudget("sql", "SELECT 7 AS x", "--json", "--database", f"sqlite:///{other}").json == [{"x": 7}]
