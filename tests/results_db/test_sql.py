"""Read-only SQL on both databases: what is allowed works, what is hostile is refused or stopped and changes nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, text

import results_db.tables  # noqa: F401 - completes the metadata
from results_db import Database
from results_db.base import Base
from results_db.migrate import upgrade
from results_db.settings import Settings
from results_db.sql import postgresql, sqlite_child
from results_db.sql.reader import administrator_sql, reader_stands
from results_db.sql.result import Limits, QueryRefused, Reach, Refusal, Result
from results_db.sql.run import run_query
from results_db.sql.stop import Stop
from results_db.tables import Attempt, Job, Model, Token
from tests.results_db.hostile_sql import BARE, ENDLESS, POSTGRESQL, SQLITE

Ask = Callable[..., Result]
sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
postgresql_only = pytest.mark.parametrize("database_backend", ["postgresql"], indirect=True)
LIMITS = Limits(rows=5, nbytes=100_000, seconds=20)
#: of a bomb, which takes all the time that it is given
BRIEF = Limits(rows=5, nbytes=100_000, seconds=0.3)
#: within so many seconds a query is refused or stopped, on a machine that does other things as well; without its limits
#: any of the bombs would take far longer
WAITED_S = 30.0


@pytest.fixture
def filled(database: Database) -> Database:
    """A database with something to lose and something to read."""
    with database.write() as session:
        session.add(Token(id="t1", name="keep", token_hash="SECRET", scope="read"))
        session.add(
            Job(id="j1", kind="sweep", state="failed", params={}, error={"code": "oom", "message": "no memory"})
        )
        session.add(Model(id="m1", name="it's", source="s", matrices=[{}, {}], config={}))
    return database


@pytest.fixture
def ask(filled: Database) -> Ask:
    url = filled.url.render_as_string(hide_password=False)
    return lambda sql, limits=LIMITS, **options: run_query(url, sql, limits, **options)


def refusal(ask: Ask, sql: str, *args: Any, **options: Any) -> QueryRefused:
    with pytest.raises(QueryRefused) as caught:
        ask(sql, *args, **options)
    return caught.value


def dump(database: Database) -> dict[str, Any]:
    """Everything that a query could have changed."""
    with database.engine.connect() as connection:
        found: dict[str, Any] = {
            table.name: sorted(map(repr, connection.execute(table.select()))) for table in Base.metadata.sorted_tables
        }
        if database.is_sqlite:
            found["schema"] = connection.execute(text("SELECT name, sql FROM sqlite_master")).all()
            found["files"] = sorted(path.name for path in Path(str(database.url.database)).parent.iterdir())
        else:
            for what in (
                "SELECT relname FROM pg_class WHERE relnamespace <> 'pg_toast'::regnamespace ORDER BY 1",
                "SELECT rolname FROM pg_roles ORDER BY 1",
                "SELECT count(*) FROM pg_largeobject_metadata",
                "SELECT last_value, is_called FROM job_events_id_seq",
            ):
                found[what] = connection.execute(text(what)).all()
    return found


# --- what is allowed -------------------------------------------------------------------------------------------------


def test_views_bring_columns_and_rows(ask: Ask) -> None:
    result = ask("SELECT id, state, error_code, error_message FROM jobs_overview;")
    assert result.columns == ("id", "state", "error_code", "error_message")
    assert (result.rows, result.truncated) == ([["j1", "failed", "oom", "no memory"]], None)


def test_parameters_are_values_and_never_sql(ask: Ask) -> None:
    query = "SELECT id FROM models_overview WHERE name = :name AND n_matrices = :n AND (:none IS NULL) AND 1.5 = :x"
    params = {"name": "it's", "n": 2, "none": None, "x": 1.5, "unused": "'; DROP TABLE tokens; --"}
    assert ask(query, params=params).rows == [["m1"]]
    assert ask(query, params=params | {"name": "'; DROP TABLE tokens; --"}).rows == []
    assert refusal(ask, "SELECT :nope AS x").why == Refusal.INVALID


def test_functions_common_table_expressions_and_odd_texts_work(ask: Ask) -> None:
    query = """
        WITH a(x, y) AS (VALUES (1, 'a%b'), (2, 'a:b''c')) -- a comment with ' in it
        SELECT sum(a.x) AS total, upper('ok') AS up, count(*) AS n, /* another ; */ max(y) AS "Most y",
               coalesce(NULL, round(2.5)) AS r, CASE WHEN 'a%b' LIKE 'a%' THEN 'yes' ELSE 'no' END AS said
        FROM a LEFT JOIN jobs_overview AS j ON j.id = a.y WHERE a.x IN (1, 2) AND NOT (a.x = 7)
    """
    result = ask(query)
    assert result.columns == ("total", "up", "n", "Most y", "r", "said")
    assert result.rows[0][:4] == [3, "OK", 2, "a:b'c"]


def test_texts_may_hold_what_unicode_takes_for_the_end_of_a_line(ask: Ask) -> None:
    for evil in ("\u2028", "\u2029", "a\x85b", "\x0b\x0c\x1c\x1d\x1e", "\r\n"):
        assert ask("SELECT :text AS a", params={"text": evil}).rows == [[evil]]


@postgresql_only
def test_a_long_parameter_is_not_written_very_often(ask: Ask) -> None:
    """It would fill the server's memory before PostgreSQL ever saw it."""
    with pytest.raises(QueryRefused, match="longer than") as refused:
        ask(f"SELECT {', '.join([':text'] * 20_000)}", params={"text": "x" * 1_000_000})
    assert refused.value.why == "too-large"


def test_two_columns_may_have_one_name(ask: Ask) -> None:
    result = ask("SELECT 1 AS a, 2 AS a, NULL AS b")
    assert (result.columns, result.rows) == (("a", "a", "b"), [[1, 2, None]])


def test_rows_and_bytes_are_capped_and_said_to_be(ask: Ask) -> None:
    query = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) SELECT i, 'text' AS t FROM n"
    )
    by_rows, by_bytes = ask(query), ask(query, Limits(rows=10_000, nbytes=2_000, seconds=20))
    assert (len(by_rows.rows), by_rows.truncated) == (5, "rows")
    assert 10 < len(by_bytes.rows) < 200
    assert by_bytes.truncated == "bytes"
    assert ask("SELECT 1 AS x", Limits(rows=1, nbytes=100, seconds=20)).truncated is None


def test_who_holds_the_url_may_read_tables(ask: Ask) -> None:
    assert ask("SELECT id FROM jobs", reach=Reach.TABLES).rows == [["j1"]]
    assert refusal(ask, "DELETE FROM tokens", reach=Reach.TABLES).why == Refusal.NOT_ALLOWED
    assert refusal(ask, "SELECT pg_sleep(9)", reach=Reach.TABLES).why in (Refusal.NOT_ALLOWED, Refusal.INVALID)


SECRETS = (
    "SELECT token_hash FROM tokens",
    "SELECT * FROM tokens",
    "SELECT count(*) FROM Tokens",
    'SELECT a."token_hash" FROM "tokens" AS a',
    "SELECT x FROM tokens AS a(x)",
    "SELECT 1 AS tokens WHERE EXISTS (SELECT 1 FROM tokens)",
    "WITH a AS (SELECT token_hash AS x FROM tokens) SELECT x FROM a",
    "SELECT 1 AS x UNION ALL SELECT length(token_hash) FROM tokens",
    "SELECT 1) AS a, (SELECT token_hash FROM tokens",
    "SELECT secret_hash FROM page_sessions",
    "SELECT response FROM idempotency_keys",
    "SELECT lease_token FROM attempts",
    "SELECT a.lease_token FROM jobs AS j JOIN attempts AS a ON a.job_id = j.id",
)
#: more ways to a table that PostgreSQL has
SECRETS_OF_POSTGRESQL = (
    "SELECT token_hash FROM public.tokens",
    'SELECT token_hash FROM "public" /* a */ . "tokens"',
    "SELECT lease_token FROM public.attempts",
    "SELECT token_hash FROM ONLY tokens",
    "SELECT row_to_json(a) FROM tokens AS a",
    "SELECT x FROM (TABLE tokens) AS a(b, c, x)",
    "SELECT (SELECT a FROM tokens AS a)",
)


def test_who_holds_the_url_is_told_no_secrets(ask: Ask, filled: Database) -> None:
    refused = (Refusal.NOT_ALLOWED, Refusal.INVALID)
    for sql in (*SECRETS, *(() if filled.is_sqlite else SECRETS_OF_POSTGRESQL)):
        error = refusal(ask, sql, reach=Reach.TABLES)
        assert (error.why in refused, "SECRET" in str(error)) == (True, False), sql
    for sql in SECRETS[:4]:
        assert refusal(ask, sql, reach=Reach.TABLES).why == Refusal.NOT_ALLOWED, sql


@postgresql_only
def test_what_is_no_secret_beside_one_is_read(ask: Ask, filled: Database) -> None:
    with filled.write() as session:
        session.add(Attempt(id="a1", job_id="j1", number=1, state="lost", lease_token="SECRET"))
    found = ask("SELECT a.*, a.id, row_to_json(a) AS whole FROM attempts AS a", reach=Reach.TABLES)
    assert found.rows[0][found.columns.index("job_id")] == "j1"
    assert found.columns.count("id") == 2
    assert "lease_token" not in found.columns
    assert "SECRET" not in str(found.rows)
    # names of columns and of one's own
    assert ask("SELECT attempts FROM jobs_overview", reach=Reach.TABLES).rows == [[1]]
    assert ask("WITH tokens AS (SELECT 2 AS n) SELECT n AS tokens FROM tokens", reach=Reach.TABLES).rows == [[2]]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite:///nowhere/none.db", "no database at"),
        ("sqlite://", "names no file"),
        ("mysql://localhost/x", "no queries on 'mysql'"),
        ("not a url", "is no database URL"),
        ("postgresql+psycopg://nobody:SECRET@127.0.0.1:9/none", "does not answer"),
    ],
)
def test_a_wrong_url_is_named_without_its_password(url: str, says: str) -> None:
    with pytest.raises(QueryRefused, match=says) as caught:
        run_query(url, "SELECT 1 AS x", LIMITS)
    assert caught.value.why == Refusal.UNAVAILABLE
    assert "SECRET" not in str(caught.value)


# --- what is hostile -------------------------------------------------------------------------------------------------


def assault(ask: Ask, hostile: Sequence[tuple[str, str, str | set[str]]]) -> list[str]:
    """What did not end as it should, two at a time as in the console."""

    def one(case: tuple[str, str, str | set[str]]) -> str | None:
        what, sql, ends = case
        wanted = {ends} if isinstance(ends, str) else ends
        limits = BRIEF if Refusal.TIMEOUT in wanted else LIMITS
        start = time.monotonic()
        ended = attempt(sql, limits)
        # a bomb before it may hold its slot a little longer than its asker waited
        while ended == Refusal.BUSY and time.monotonic() - start < WAITED_S:
            threading.Event().wait(0.05)
            ended = attempt(sql, limits)
        took = time.monotonic() - start
        return None if ended in wanted and took < WAITED_S else f"{what}: {ended} after {took:.1f} s"

    def attempt(sql: str, limits: Limits) -> str:
        try:
            ask(sql, limits)
        except QueryRefused as error:
            return "it told the secret" if "SECRET" in str(error) else error.why.value
        return "answer"

    with ThreadPoolExecutor(2) as pool:
        return [finding for finding in pool.map(one, hostile) if finding is not None]


@sqlite_only
def test_hostile_queries_are_refused_or_stopped_on_sqlite(ask: Ask, filled: Database) -> None:
    assert len(SQLITE) >= 60
    ask("SELECT 1 AS x")
    before = dump(filled)
    assert assault(ask, SQLITE) == []
    assert dump(filled) == before


@postgresql_only
def test_hostile_queries_are_refused_or_stopped_on_postgresql(ask: Ask, filled: Database) -> None:
    assert len(POSTGRESQL) >= 60
    before = dump(filled)
    assert assault(ask, POSTGRESQL) == []
    # nothing is held or runs on, not even what PostgreSQL could not interrupt at once
    locks = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
    deadline = time.monotonic() + WAITED_S
    with filled.engine.connect() as connection:
        while connection.execute(locks).scalar_one():
            assert time.monotonic() < deadline, "a query runs on"
            threading.Event().wait(0.05)
    assert dump(filled) == before


@postgresql_only
def test_without_the_list_of_names_the_database_refuses(
    ask: Ask, filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader's rights hold by themselves: the names are a second fence, not the only one."""
    monkeypatch.setattr(postgresql, "checked_query", lambda sql, _params: sql)
    before = dump(filled)
    refused = {Refusal.NOT_ALLOWED.value, Refusal.INVALID.value}
    hostile = [(sql, sql, {Refusal.TIMEOUT.value} if "pg_sleep" in sql else refused) for sql in BARE]
    assert assault(ask, hostile) == []
    assert dump(filled) == before


def test_the_clocks_leave_two_seconds() -> None:
    """They end a query, as the bombs show, with the limit that is configured."""
    configured = Settings.model_fields["sql_seconds"].default
    assert configured + postgresql._GRACE_S + postgresql._CUT_AFTER_S < 2
    assert configured + sqlite_child._ALARM_AFTER_S < 2


def test_a_query_ends_when_it_is_told_to(ask: Ask) -> None:
    """By another thread, long before its time is over."""
    stop = Stop()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, f"{ENDLESS} SELECT count(*) FROM n", Limits(seconds=200), stop=stop)
        began = threading.Event()
        while stop._action is None and not running.done():
            began.wait(0.01)
        stop.request()
        with pytest.raises(QueryRefused) as caught:
            running.result(timeout=60)
    assert caught.value.why == Refusal.STOPPED


def test_a_query_that_nobody_waits_for_does_not_start(ask: Ask) -> None:
    stop = Stop()
    stop.request()
    assert refusal(ask, f"{ENDLESS} SELECT count(*) FROM n", Limits(seconds=200), stop=stop).why == Refusal.STOPPED


# --- PostgreSQL's reader ---------------------------------------------------------------------------------------------


WEAKER = (
    "GRANT SELECT ON tokens TO bitbudget_reader",
    "GRANT SELECT (token_hash) ON tokens TO PUBLIC",
    "GRANT INSERT ON jobs TO PUBLIC",
    "GRANT USAGE ON SEQUENCE job_events_id_seq TO bitbudget_reader",
    "GRANT pg_read_all_data TO bitbudget_reader",
    "GRANT CREATE ON SCHEMA bitbudget_sql TO bitbudget_reader",
    "ALTER ROLE bitbudget_reader CREATEROLE",
    "ALTER FUNCTION bitbudget_sql.run SECURITY INVOKER",
    "ALTER FUNCTION bitbudget_sql.run VOLATILE",
    "ALTER FUNCTION bitbudget_sql.run OWNER TO CURRENT_USER",
    "DROP FUNCTION bitbudget_sql.run",
)


@postgresql_only
def test_a_fence_with_a_hole_is_seen_and_not_used(ask: Ask, filled: Database) -> None:
    for weaken in WEAKER:
        with filled.engine.connect() as connection:
            assert reader_stands(connection)
            connection.execute(text(weaken))
            assert not reader_stands(connection), weaken
            connection.rollback()
    with filled.engine.begin() as connection:
        connection.execute(text(WEAKER[0]))
    error = refusal(ask, "SELECT 1 AS x")
    assert error.why == Refusal.UNAVAILABLE
    assert "CREATE ROLE bitbudget_reader" in str(error.cure)


@postgresql_only
def test_a_service_that_may_not_make_roles_is_refused_until_an_administrator_does(
    empty_database_url: str, postgres_run: Callable[[str], Any]
) -> None:
    """The database's owner is nobody special; what ``bitbudget sql --reader-role`` prints is all that it needs."""
    url = make_url(empty_database_url)
    postgres_run("CREATE ROLE service LOGIN")
    try:
        postgres_run(f"ALTER DATABASE {url.database} OWNER TO service")
        database = Database(url.set(username="service").render_as_string(hide_password=False))
        ask = partial(run_query, database.url, "SELECT count(*) AS n FROM jobs_overview", LIMITS)
        upgrade(database)
        with pytest.raises(QueryRefused) as caught:
            ask()
        assert caught.value.why == Refusal.UNAVAILABLE
        (grant,) = (line for line in administrator_sql("service").splitlines() if line.startswith("GRANT"))
        postgres_run(grant)
        upgrade(database)
        assert ask().rows == [[0]]
        with pytest.raises(QueryRefused, match="permission denied"):
            run_query(database.url, "SELECT token_hash FROM tokens", LIMITS)
    finally:
        database.dispose()
        postgres_run(f"ALTER DATABASE {url.database} OWNER TO CURRENT_USER")
        for statement in (f"DROP DATABASE {url.database} WITH (FORCE)", f"CREATE DATABASE {url.database}"):
            postgres_run(statement)
        postgres_run("DROP ROLE service")


@postgresql_only
def test_views_and_columns_carry_their_meaning(filled: Database) -> None:
    with filled.engine.connect() as connection:
        said = connection.execute(
            text("SELECT obj_description('errors'::regclass), col_description('errors'::regclass, 12)")
        )
        assert tuple(said.one()) == (
            "A row is the error and the bytes of one (matrix, config), as they count.",
            "‖W − Ŵ‖² / ‖W‖² [1]",
        )
