"""The contract: every view and column described, nothing described that is not there, and canned queries that answer.

``SNAPSHOT=write pytest tests/results_db/test_sql_contract.py`` writes docs/sql.md's tables anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update

from results_db import Database
from results_db.clock import utc_now
from results_db.sql.canned import CANNED
from results_db.sql.contract import CONTRACT, SQL_CONTRACT_VERSION
from results_db.sql.result import Limits, QueryRefused, Result
from results_db.sql.run import run_query
from results_db.tables import Attempt, Fit, Job, SensitivityAnchor, Study, Sweep
from results_db.views import VIEWS
from tests.conftest import NewDatabase
from tests.web.conftest import Filler

REPO = Path(__file__).resolve().parents[2]
DOCUMENT, CHANGELOG = REPO / "docs" / "sql.md", REPO / "CHANGELOG.md"
LIMITS = Limits(rows=100, seconds=60)

#: kind -> names of PostgreSQL's types, and of SQLite's storage classes
POSTGRESQL_TYPES = {
    "text": {"varchar", "text"},
    "integer": {"int4", "int8"},
    "real": {"float8"},
    "boolean": {"bool"},
    "time": {"timestamptz"},
}
SQLITE_TYPES = {"text": str, "integer": int, "real": (float, int), "boolean": int, "time": str}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def filled(
    request: pytest.FixtureRequest, new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """A study that ended, with an attempt that failed and a fit that is stale; nobody writes to it."""
    database = Database(new_database(request.param, tmp_path_factory.mktemp("filled")))
    filler = Filler(database)
    filler.study("demo")
    with database.write() as session:
        attempt = session.scalars(select(Attempt).order_by(Attempt.id)).first()
        assert attempt is not None
        attempt.state, attempt.error = "failed", {"code": "out-of-memory", "message": "no memory"}
        attempt.started_at = attempt.finished_at = utc_now()
        attempt.peak_rss_bytes, attempt.peak_gpu_bytes, attempt.exit_code = 5_000_000_000, 7, 1
        session.execute(update(Fit).values(stale_at=utc_now(), stale_reason="measured again"))
        sweep = session.scalars(select(Sweep)).one()
        job = session.get_one(Job, sweep.job_id)
        job.result = {"reused": 3}
    yield database
    database.dispose()


def ask(database: Database, sql: str, **options: Any) -> Result:
    return run_query(database.url, sql, LIMITS, **options)


def columns_of(view: str) -> tuple[str, ...]:
    return tuple(column.name for column in CONTRACT[view].columns)


def test_every_view_and_column_is_described_and_no_other(filled: Database) -> None:
    assert set(CONTRACT) == set(VIEWS)
    with filled.engine.connect() as connection:
        for view in CONTRACT:
            assert tuple(connection.execute(text(f"SELECT * FROM {view}")).keys()) == columns_of(view), view


def test_descriptions_are_sentences_of_use() -> None:
    for view in CONTRACT.values():
        assert view.row_is
        names = [column.name for column in view.columns]
        assert len(set(names)) == len(names), view.name
        for column in view.columns:
            assert len(column.meaning) > 3, (view.name, column.name)
            assert column.unit or column.kind != "real", (view.name, column.name)
            assert (column.unit == "bytes") == (column.name == "nbytes" or column.name.endswith("_bytes")), column.name
            # an id names the view that it leads to
            for target in re.findall(r"\b(\w+)\.id\b", column.meaning):
                assert target in CONTRACT, (view.name, column.name)


@pytest.mark.parametrize("database_backend", ["postgresql"], indirect=True)
def test_postgresql_types_are_those_described(database: Database) -> None:
    query = text(
        "SELECT t.typname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid "
        "WHERE a.attrelid = to_regclass(:view) AND a.attnum > 0 ORDER BY a.attnum"
    )
    with database.engine.connect() as connection:
        for view in CONTRACT.values():
            types = connection.execute(query, {"view": view.name}).scalars().all()
            for column, found in zip(view.columns, types, strict=True):
                assert found in POSTGRESQL_TYPES[column.kind], (view.name, column.name)


def test_views_bring_what_they_describe(filled: Database) -> None:
    """On a study's rows; views that it does not fill are few."""
    empty = set()
    for view in CONTRACT.values():
        rows = ask(filled, f"SELECT * FROM {view.name}").rows
        if not rows:
            empty.add(view.name)
        for row in rows:
            for column, value in zip(view.columns, row, strict=True):
                kinds = SQLITE_TYPES[column.kind] if filled.is_sqlite else (str, int, float, bool)
                assert value is None or isinstance(value, kinds), (view.name, column.name, value)
    assert empty <= {"retired_errors", "probes_overview", "evaluation_windows", "fit_parameters_overview"}


def test_what_a_sweep_cost(filled: Database) -> None:
    with filled.read() as session:
        sweep = session.scalars(select(Sweep)).one()
    (row,) = ask(filled, "SELECT id, study, n_recorded, n_reused, n_configs, device_kind FROM sweeps_overview").rows
    assert row[0] == sweep.id
    assert row[1] == "demo"
    assert row[2] == ask(filled, "SELECT count(*) AS n FROM errors").rows[0][0] > 0
    assert row[3:] == [3, len(sweep.configs), "cpu"]


def test_counts_of_a_study(filled: Database) -> None:
    (row,) = ask(filled, "SELECT name, n_jobs, n_ended, n_gates, n_go + n_no_go AS n FROM studies_overview").rows
    with filled.read() as session:
        n_jobs = len(session.scalars(select(Job)).all())
        assert row[0] == session.scalars(select(Study.name)).one()
    assert row[1:] == [n_jobs, n_jobs, 5, 4]


def test_the_canned_queries_answer(filled: Database) -> None:
    assert len(CANNED) >= 10
    without_rows = {name for name, query in CANNED.items() if not ask(filled, query.sql, params=query.values({})).rows}
    assert without_rows == set()


def test_canned_queries_take_their_parameters(filled: Database) -> None:
    def rows(name: str, **given: Any) -> list[list[Any]]:
        query = CANNED[name]
        return ask(filled, query.sql, params=query.values(given)).rows

    worst = rows("worst-matrices", limit=3)
    assert [row[4] for row in worst] == sorted((row[4] for row in worst), reverse=True)
    assert len(worst) == 3
    assert rows("worst-matrices", bits=7) == []
    assert rows("worst-matrices", model="none") == []
    assert rows("sweep-cost", since="2099-01-01") == []
    assert len(rows("sweep-cost", since="2000-01-01T00:00:00+02:00")) == 1
    assert rows("failed-attempts", study="demo")[0][-3:-1] == ["out-of-memory", "no memory"]
    assert rows("failed-attempts", study="it's another") == []
    shares = [row[2] for row in rows("bytes-by-projection")]
    assert sum(shares) == pytest.approx(1)
    assert rows("bytes-by-projection", allocation="none") == []
    assert {row[0] for row in rows("what-is-stale")} == {"fit"}


def test_canned_parameters_are_checked() -> None:
    now = datetime(2026, 1, 31, 18, 0, tzinfo=UTC)
    assert CANNED["sweep-cost"].values({}, now=now) == {"since": "2026-01-30 18:00:00"}
    assert CANNED["worst-matrices"].values({"bits": "3"}) == {"bits": 3, "model": None, "limit": 10}
    for name, given in (
        ("worst-matrices", {"bits": "two"}),
        ("worst-matrices", {"bits": 2.5}),
        ("worst-matrices", {"nope": 1}),
        ("sweep-cost", {"since": "yesterday"}),
        ("sweep-cost", {"since": "0001-01-01T00:00:00+14:00"}),
    ):
        with pytest.raises(QueryRefused, match="parameter"):
            CANNED[name].values(given)


def test_a_sensitivity_per_anchor_is_there(filled: Database) -> None:
    with filled.read() as session:
        n = len(session.scalars(select(SensitivityAnchor)).all())
    assert ask(filled, "SELECT count(*) AS n FROM sensitivities_overview").rows == [[n]]


# --- docs/sql.md -----------------------------------------------------------------------------------------------------


def tables() -> str:
    lines = ["| view | a row is |", "|---|---|"]
    lines += [f"| [`{view.name}`](#{view.name}) | {view.row_is} |" for view in CONTRACT.values()]
    lines.append("")
    for view in CONTRACT.values():
        lines += [
            f"### {view.name}\n",
            f"A row is {view.row_is}.\n",
            "| column | type | unit | meaning |",
            "|---|---|---|---|",
        ]
        for c in view.columns:
            lines.append(f"| `{c.name}` | {c.kind} | {c.unit or ''} | {c.meaning.replace('|', chr(92) + '|')} |")
        lines.append("")
    return "\n".join(lines)


def questions() -> str:
    lines = ["| name | question | parameters |", "|---|---|---|"]
    for query in CANNED.values():
        parameters = "; ".join(f"`{p.name}`: {p.meaning}" for p in query.parameters)
        lines.append(f"| `{query.name}` | {query.title} | {parameters} |")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(("mark", "make"), [("views", tables), ("queries", questions)])
def test_the_document_is_the_contract(mark: str, make: Any) -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    before, begin, rest = document.partition(f"<!-- {mark} -->\n")
    kept, end, after = rest.partition(f"<!-- end of {mark} -->\n")
    assert begin
    assert end
    if os.environ.get("SNAPSHOT") == "write":
        kept = make()
        DOCUMENT.write_text(before + begin + kept + end + after, encoding="utf-8")
    assert kept == make(), "docs/sql.md is behind the contract: run with SNAPSHOT=write and commit it"
    assert f"version {SQL_CONTRACT_VERSION}" in document


def test_the_changelog_tells_of_the_version() -> None:
    assert f"SQL contract version {SQL_CONTRACT_VERSION}" in CHANGELOG.read_text(encoding="utf-8")
