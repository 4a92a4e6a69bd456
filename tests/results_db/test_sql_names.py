"""The names that a query on PostgreSQL may use: what researchers write passes, what hides a name does not."""

from __future__ import annotations

from typing import Any

import pytest

from results_db.sql.canned import CANNED
from results_db.sql.names import checked_query
from results_db.sql.result import QueryRefused, Refusal

PASSES: list[tuple[str, dict[str, Any], str | None]] = [
    ("SELECT count(*), sum(a.b) FROM errors AS a;", {}, "SELECT count(*), sum(a.b) FROM errors AS a"),
    ("select 1--x\n+2/* a /* b */ ; */as y", {}, "select 1 +2 as y"),
    ("SELECT 'it''s ; -- no comment', \"a;b\"", {}, None),
    ("WITH RECURSIVE n(i) AS (SELECT 1), m (a, b) AS MATERIALIZED (VALUES (1, 2)) SELECT i FROM n", {},
     "WITH RECURSIVE n(i) AS MATERIALIZED (SELECT 1), m (a, b) AS MATERIALIZED (VALUES (1, 2)) SELECT i FROM n"),
    ("SELECT * FROM (VALUES (1, 'a')) AS t(a, b) WHERE a IN (1, 2) AND NOT (b = 'c')", {},
     "SELECT * FROM (VALUES (1, 'a') OFFSET 0 ) AS t(a, b) WHERE a IN (1, 2) AND NOT (b = 'c')"),
    ("SELECT (SELECT max(x) FROM t), u.offset FROM (SELECT 1 AS offset) AS u", {},
     "SELECT (SELECT max(x) FROM t OFFSET 0 ), u.offset FROM (SELECT 1 AS offset OFFSET 0 ) AS u"),
    ("SELECT * FROM (SELECT 1 LIMIT 2 OFFSET 1) AS u WHERE EXISTS (SELECT 1) AND 1 IN (SELECT 1)", {}, None),
    ("SELECT 1 = ANY (SELECT 2 UNION ALL (SELECT 3)) FROM t", {},
     "SELECT 1 = ANY (SELECT 2 UNION ALL (SELECT 3 OFFSET 0 )) FROM t"),
    ("SELECT 2*-1, 3 <-1, a->>'b', to_char(now(), 'YYYY'), to_timestamp(1.5), GREATEST(1, 2)", {}, None),
    ("SELECT rank() OVER (PARTITION BY projection ORDER BY nbytes) FROM errors", {}, None),
    ("SELECT sum(x) FILTER (WHERE x > 0), extract(epoch FROM now()), CAST(x AS numeric(10, 2)) FROM t", {}, None),
    ("SELECT x::text, date '2026-01-01', -1.5e-3, .5 FROM t", {}, None),
    ("SELECT :a, :b, :c, :d, :e", {"a": "x'y", "b": -1, "c": True, "d": None, "e": 1e-7},
     "SELECT 'x''y', (-1), true, NULL, (1e-07)"),
    ("SELECT b_q<:x", {"x": 3}, "SELECT b_q<(3)"),
    ("SELECT ln(x), Power(y, 2), ln FROM t", {}, "SELECT dlog1(x), dpow(y, 2), ln FROM t"),
    ("SELECT 1 WHERE n LIKE 'a%b_.' AND m NOT ILIKE :p", {"p": "x\\%"},
     "SELECT 1 WHERE n ~ '(?s)^a.*b.\\U0000002e$' AND m !~* '(?s)^x\\U00000025$'"),
    ("((SELECT 1))", {}, "((SELECT 1 OFFSET 0 ))"),
]  # fmt: skip
REFUSED = [
    "pg_sleep(1)",
    "SELECT pg_sleep(1)",
    "SELECT PG_SLEEP (1)",
    'SELECT "pg_sleep" (1)',
    'SELECT "PG_sleep"(1)',
    "SELECT pg_catalog . pg_sleep(1)",
    "SELECT pg_sleep/* */(1)",
    "SELECT pg_sleep--\n(1)",
    "SELECT U&\"p\\0067_sleep\"(1)",
    "SELECT u&'a'",
    "SELECT E'\\'' , pg_sleep(1) --'",
    "SELECT e'a'",
    "SELECT $$a$$",
    "SELECT $x$ ' $x$",
    "SELECT a$b",
    "SELECT $1",
    "SELECT 1; SELECT 2",
    "SELECT /* a",
    "SELECT 'a",
    'SELECT "a',
    "SELECT dblink('a')",
    "SELECT f(1) AS (SELECT)",
    "SELECT 1, dblink(a) AS (values int)",
    "SELECT * FROM dblink('a') AS t(a int)",
    "SELECT DISTINCT ON (a) lo_import('b')",
    "SELECT 1 ^ 2",
    "SELECT a LIKE b",
    "SELECT a LIKE 'b' || c",
    "SELECT a LIKE 'b' ESCAPE 'c'",
    "SELECT a ~~ 'b'",
    "SELECT a LIKE",
    "SELECT a @> b",
    "SELECT a -|- b",
    "SELECT a &&- b",
    "SELECT 1 > ANY (ARRAY[1])",
    "SELECT 1 = SOME ((SELECT a) || b)",
    "SELECT to_char(a, b)",
    "SELECT to_date('a', 'b' || c)",
    "SELECT '{}'::\"jsonb\"",
    "WITH a AS NOT MATERIALIZED (SELECT 1) SELECT 1",
    "SELECT (1",
    "SELECT 1)",
    "SELECT 'tokens'::regclass",
    "SELECT current_user",
    "SELECT Session_User",
    "SELECT 1 FROM information_schema.tables",
    "SELECT \"Information_Schema\".x",
    "SELECT \\",
    "EXPLAIN SELECT 1",
    "TABLE tokens",
    "COPY a TO STDOUT",
    "",
    "()",
    ";;",
]  # fmt: skip


@pytest.mark.parametrize(("sql", "params", "becomes"), PASSES)
def test_what_researchers_write_passes(sql: str, params: dict[str, Any], becomes: str | None) -> None:
    assert checked_query(sql, params) == (becomes or sql)


@pytest.mark.parametrize("sql", REFUSED)
def test_what_hides_a_name_is_refused(sql: str) -> None:
    with pytest.raises(QueryRefused) as caught:
        checked_query(sql, {})
    assert caught.value.why == Refusal.NOT_ALLOWED


def test_a_parameter_without_a_value_is_named() -> None:
    with pytest.raises(QueryRefused, match=":nope"):
        checked_query("SELECT :nope", {"other": 1})


@pytest.mark.parametrize("name", CANNED)
def test_the_canned_queries_pass(name: str) -> None:
    assert checked_query(CANNED[name].sql, CANNED[name].values({}))
