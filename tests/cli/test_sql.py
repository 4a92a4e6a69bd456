"""`bitbudget sql`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from results_db.views import VIEWS


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
    assert outcome.err.startswith("error: only reading is allowed")
    assert "cure:" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_missing_database_is_named(bitbudget: Callable) -> None:
    outcome = bitbudget("sql", "SELECT 1")
    assert outcome.code == 2
    assert "there is no database at" in outcome.err


def test_views_lists_the_contract(bitbudget: Callable) -> None:
    assert [row["view"] for row in bitbudget("sql", "--views", "--json").json] == list(VIEWS)


def test_database_option_wins(bitbudget: Callable, database_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    sqlite3.connect(other).close()
    other.touch()
    assert bitbudget("sql", "SELECT 7 AS x", "--json", "--database", f"sqlite:///{other}").json == [{"x": 7}]
