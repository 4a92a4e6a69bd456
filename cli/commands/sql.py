"""`bitbudget sql`: read the results database."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated, Any

import typer
from sqlalchemy import make_url

from cli.api import segment
from cli.errors import CliError, ExitCode
from cli.options import JsonOption, ServerOption, connect, settings
from cli.output import out, print_json, say, table
from cli.stack.record import running_stack
from results_db.cells import csv_lines
from results_db.sql.canned import CANNED
from results_db.sql.contract import CONTRACT
from results_db.sql.reader import administrator_sql
from results_db.sql.result import Limits, QueryRefused, Reach, Refusal, Result
from results_db.sql.run import run_query


class Format(StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def sql(
    query: Annotated[str | None, typer.Argument(help="One SELECT; `-` reads it from stdin.")] = None,
    database: Annotated[
        str | None,
        typer.Option("--database", metavar="URL", help="Default: BITBUDGET_DATABASE_URL, else ./var/bitbudget.db."),
    ] = None,
    format_: Annotated[Format, typer.Option("--format", help="How rows are printed.")] = Format.TABLE,
    as_json: JsonOption = False,
    rows: Annotated[int, typer.Option(min=1, help="Print at most so many rows.")] = 1000,
    seconds: Annotated[float, typer.Option(min=0.001, help="End the query after so many seconds.")] = 30.0,
    canned: Annotated[
        str | None, typer.Option("--query", metavar="NAME", help="Run a canned query; `list` says what there is.")
    ] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", metavar="NAME=VALUE", help="A parameter; may be repeated.")
    ] = None,
    through_server: Annotated[
        bool, typer.Option("--through-server", help="Ask the server's console instead of the database.")
    ] = False,
    server: ServerOption = None,
    views: Annotated[bool, typer.Option("--views", help="List the views and columns that are the contract.")] = False,
    reader_role: Annotated[
        bool, typer.Option("--reader-role", help="Print the SQL that allows a PostgreSQL to be asked over HTTP.")
    ] = False,
) -> None:
    """Run one SELECT on the results database, read-only.

    It goes straight to the database, so it works while no server runs; with --through-server it needs no access to it.
    The views (`--views`) are a contract: their names and columns stay. A query can change nothing and reads no
    secrets. --query runs one of the questions that come with bitbudget.

    \b
    Examples:
      bitbudget sql --views
      bitbudget sql "SELECT layer_idx, projection, b_q, rank, calibration_weighted_error FROM errors LIMIT 10"
      bitbudget sql "SELECT * FROM jobs_overview WHERE state = :state" --param state=failed
      bitbudget sql --query worst-matrices --param bits=3
      bitbudget sql --format csv "SELECT * FROM evaluations_overview" > evaluations.csv
    """
    chosen = Format.JSON if as_json else format_
    if views:
        _print(_contract(), chosen)
    elif reader_role:
        sys.stdout.write(administrator_sql(make_url(database or _default_database()).username or "bitbudget"))
    elif canned == "list":
        _print(_canned_list(), chosen)
    else:
        text = sys.stdin.read() if query == "-" else query
        if (text is None) == (canned is None):
            raise CliError("give one query", cure='bitbudget sql "SELECT …", --query NAME, or --views')
        limits = Limits(rows=rows, nbytes=100_000_000, seconds=seconds)
        given = _params(param or [])
        if through_server:
            result = _ask_server(server, text, canned, given, limits)
        else:
            result = _ask_database(database or _default_database(), text, canned, given, limits)
        _print(result, chosen)
        if result.truncated is not None:
            by_rows = result.truncated == "rows"
            cure = "raise --rows, or use LIMIT and ORDER BY" if by_rows else "the answer is too large"
            say(f"only the first {len(result.rows)} rows are shown: {cure}")


def _ask_database(url: str, text: str | None, canned: str | None, given: dict[str, Any], limits: Limits) -> Result:
    try:
        if canned is not None:
            known = CANNED.get(canned)
            if known is None:
                raise CliError(f"no canned query is called {canned!r}", cure="bitbudget sql --query list")
            # what comes with bitbudget asks the views, with the rights of who asks
            return run_query(url, known.sql, limits, params=known.values(given), reach=Reach.TABLES)
        return run_query(url, str(text), limits, params=given, reach=Reach.TABLES)
    except QueryRefused as error:
        cure = "ask for less, or give it time with --seconds" if error.why is Refusal.TIMEOUT else error.cure
        raise CliError(str(error), cure=cure) from error


def _ask_server(
    server: str | None, text: str | None, canned: str | None, given: dict[str, Any], limits: Limits
) -> Result:
    # the server has limits of its own, and takes the smaller ones
    body: dict[str, Any] = {"params": given, "limits": {"rows": limits.rows, "seconds": limits.seconds}}
    with connect(server) as api:
        if canned is None:
            answer = api.post("/sql", body | {"query": text})
        else:
            answer = api.post(f"/sql/queries/{segment(canned)}", body)
    try:
        return Result(tuple(answer["columns"]), answer["rows"], answer["truncated"], answer["seconds"])
    except (KeyError, TypeError) as error:
        raise CliError("the server's answer is not that of a console", code=ExitCode.UNREACHABLE) from error


def _params(given: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs; what looks like a number is one."""
    found: dict[str, Any] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise CliError(f"--param {pair!r} is not NAME=VALUE", cure="--param b_q=2")
        found[name] = _number(value)
    return found


def _number(value: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _contract() -> Result:
    lines = [
        [view.name, column.name, column.kind, column.unit, column.meaning]
        for view in CONTRACT.values()
        for column in view.columns
    ]
    heads = [[view.name, None, None, None, f"a row is {view.row_is}"] for view in CONTRACT.values()]
    rows = sorted([*heads, *lines], key=lambda row: list(CONTRACT).index(str(row[0])))
    return Result(("view", "column", "type", "unit", "meaning"), rows, None, 0.0)


def _canned_list() -> Result:
    rows = [[name, query.title, ", ".join(p.name for p in query.parameters)] for name, query in CANNED.items()]
    return Result(("query", "question", "parameters"), [list(row) for row in rows], None, 0.0)


def _default_database() -> str:
    """The running stack's database where it has no password to hide, else the settings'."""
    current = settings()
    record = running_stack(current.var_dir)
    return current.database_url if record is None or "***" in record.database_url else record.database_url


def _print(result: Result, format_: Format) -> None:
    match format_:
        case Format.JSON:
            print_json([dict(zip(result.columns, row, strict=True)) for row in result.rows])
        case Format.CSV:
            sys.stdout.write(csv_lines([result.columns, *result.rows]))
        case Format.TABLE:
            out().print(table(result.columns, result.rows))
