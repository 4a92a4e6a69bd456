"""`bitbudget sql`: read the results database."""

from __future__ import annotations

import csv
import sys
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any

import typer

from cli.errors import CliError
from cli.options import JsonOption, settings
from cli.output import out, print_json, say, table
from cli.query.result import Limits, Result
from cli.query.run import run_query
from cli.stack.record import running_stack
from results_db.views import VIEWS


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
    views: Annotated[bool, typer.Option("--views", help="List the views that are the database's contract.")] = False,
) -> None:
    """Run one SELECT on the results database, read-only.

    It goes straight to the database, so it works while no server runs. The views (`--views`) are a contract: their
    names and columns stay. A query can change nothing: the database refuses, not this program.

    \b
    Examples:
      bitbudget sql --views
      bitbudget sql "SELECT layer_idx, projection, b_q, rank, calibration_weighted_error FROM errors LIMIT 10"
      bitbudget sql --format csv "SELECT * FROM evaluations_overview" > evaluations.csv
    """
    chosen = Format.JSON if as_json else format_
    if views:
        _print(
            Result(("view", "query"), [(name, " ".join(text.split())) for name, text in VIEWS.items()], False), chosen
        )
        return
    if query is None:
        raise CliError("no query", cure='bitbudget sql "SELECT …", or --views for what there is to ask')
    text = sys.stdin.read() if query == "-" else query
    result = run_query(database or _default_database(), text, Limits(rows, seconds))
    _print(result, chosen)
    if result.cut:
        say(f"only the first {rows} rows are shown: raise --rows, or use LIMIT and ORDER BY")


def _default_database() -> str:
    """The running stack's database where it has no password to hide, else the settings'."""
    current = settings()
    record = running_stack(current.var_dir)
    return current.database_url if record is None or "***" in record.database_url else record.database_url


def _print(result: Result, format_: Format) -> None:
    match format_:
        case Format.JSON:
            print_json(
                [{name: _plain(value) for name, value in zip(result.columns, row, strict=True)} for row in result.rows]
            )
        case Format.CSV:
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(result.columns)
            writer.writerows([_csv_cell(value) for value in row] for row in result.rows)
        case Format.TABLE:
            out().print(table(result.columns, [[_plain(value) for value in row] for row in result.rows]))


def _plain(value: Any) -> Any:
    """A value of either database as JSON has it."""
    match value:
        case datetime():
            return value.isoformat()
        case Decimal():
            return float(value)
        case bytes() | memoryview():
            return bytes(value).hex()
        case None | bool() | int() | float() | str() | dict() | list():
            return value
    return str(value)


def _csv_cell(value: Any) -> Any:
    """A spreadsheet takes a text that begins with = + - @ for a formula: such text gets an apostrophe in front."""
    plain = _plain(value)
    return f"'{plain}" if isinstance(plain, str) and plain.startswith(("=", "+", "-", "@", "\t", "\r")) else plain
