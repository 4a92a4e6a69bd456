"""`bitbudget measurements`: list, invalidate, retired."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from cli.errors import CliError
from cli.filters import MEASUREMENT_FILTERS, taking
from cli.options import JsonOption, ServerOption, connect
from cli.output import out, print_json, say, table

app = typer.Typer(
    help="Look at single measurements, and invalidate bad ones.", no_args_is_help=True, rich_markup_mode=None
)

LimitOption = Annotated[int, typer.Option(min=1, help="At most so many, newest first.")]

_CELL = ("id", "layer_idx", "projection", "b_q", "rank", "codebook", "calibration_weighted_error", "nbytes")


@app.command("list")
@taking(MEASUREMENT_FILTERS)
def list_measurements(
    server: ServerOption = None,
    as_json: JsonOption = False,
    *,
    only: dict[str, Any],
    limit: LimitOption = 50,
) -> None:
    """List measurements, newest first. `bitbudget export measurements` has all of them, with every column.

    \b
    Example:
      bitbudget measurements list --layer 3 --projection down --bits 2
    """
    _show("/measurements", only, limit, (*_CELL, "seconds", "sweep_id"), server, as_json)


@app.command()
@taking(MEASUREMENT_FILTERS)
def retired(
    server: ServerOption = None,
    as_json: JsonOption = False,
    *,
    only: dict[str, Any],
    limit: LimitOption = 50,
) -> None:
    """List measurements that count no more: invalidated, or measured again by a forced sweep.

    \b
    Example:
      bitbudget measurements retired --layer 3
    """
    columns = ("measurement_id", *_CELL[1:], "retired_at", "reason")
    _show("/measurements/retired", only, limit, columns, server, as_json)


@app.command()
@taking(MEASUREMENT_FILTERS)
def invalidate(
    reason: Annotated[str, typer.Option(help="Why: kept with them, and shown with what was computed from them.")],
    ids: Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="Measurements by their ids.")] = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
    *,
    only: dict[str, Any],
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without: only tell what would be done.")] = False,
) -> None:
    """Let bad measurements count no more, by their ids or by what they are of: the next sweep measures the cells again.

    Fits, allocations and gates that were computed from them are marked stale. Nothing is done without --yes.

    \b
    Examples:
      bitbudget measurements invalidate 17 --reason "the fan stood still"
      bitbudget measurements invalidate --sweep swp_0192f3a4b5c9f1e2d3c4b5a --layer 3 --reason "bad memory" --yes
    """
    if bool(ids) == bool(only):
        raise CliError(
            "name measurements by their ids, or by at least one filter, not by both",
            cure="`bitbudget measurements list` takes the same filters and shows the ids",
        )
    body = {"reason": reason, "dry_run": not yes}
    paths = [f"/measurements/{id_}/invalidate" for id_ in ids or ()] or [f"/measurements/invalidate?{urlencode(only)}"]
    with connect(server) as api:
        answers = [api.post(path, body) for path in paths]
    if as_json:
        print_json(answers)
        return
    n = sum(answer["measurements"] for answer in answers)
    stale = {
        name: len({id_ for answer in answers for id_ in answer["stale"][name]})
        for name in ("fits", "allocations", "gates")
    }
    counted = ", ".join(f"{count} {name}" for name, count in stale.items() if count) or "nothing"
    which = "1 measurement" if n == 1 else f"{n} measurements"
    if yes:
        say(f"{which} retired; stale with that: {counted}")
    else:
        say(f"{which} would be retired; stale with that: {counted}. Nothing is done yet: add --yes")


def _show(
    path: str, only: dict[str, Any], limit: int, columns: tuple[str, ...], server: str | None, as_json: bool
) -> None:
    with connect(server) as api:
        rows = list(api.items(path, limit=limit, **only))
    if as_json:
        print_json(rows)
        return
    out().print(table(columns, [[row[name] for name in columns] for row in rows]))
