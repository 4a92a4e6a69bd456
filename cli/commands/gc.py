"""`bitbudget gc`: remove what is of no more use."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.database import open_database, require_schema, shown
from cli.errors import CliError
from cli.options import JsonOption, settings
from cli.output import nbytes, out, print_json, say, table
from results_db import Database
from results_db.gc import Item, cure_of_moved, find_garbage, moved_to
from results_db.gc.collect import LEAST_DAYS


def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Remove it. Without this, only say what would go.")] = False,
    older_than: Annotated[
        float, typer.Option(min=LEAST_DAYS, metavar="DAYS", help="Leave alone what is younger.")
    ] = LEAST_DAYS,
    as_json: JsonOption = False,
) -> None:
    """Find what nothing refers to and nobody uses, on this host and in the database; remove it with --yes.

    Artefacts without a row, rows of artefacts that nothing has, unfinished work and copies of remote artefacts that
    nobody touched for BITBUDGET_KEEP_WORK_DAYS, what killed moves left, crash reports, expired idempotency keys and
    sessions. Jobs, events and measurements are history and stay. Server and workers may run: what they hold is locked,
    and nothing younger than a day is looked at.

    \b
    Examples:
      bitbudget gc
      bitbudget gc --yes
    """
    chosen = settings()
    with open_database(chosen.database_url, there=True) as database:
        _check(database)
        items = list(find_garbage(database, chosen, days=older_than))
        removed = [item for item in items if yes and item.remove()]
        found = removed if yes else items
        total = sum(item.nbytes for item in found)
        where = shown(database)
        if as_json:
            print_json({"database": where, "removed": yes, "nbytes": total, "items": [_facts(item) for item in found]})
            return
        say(f"database {where}, artefacts {chosen.artefacts_url}, var folder {chosen.var_dir}")
        if found:
            rows = [(item.kind, nbytes(item.nbytes) if item.nbytes else None, item.name, item.reason) for item in found]
            out().print(table(("what", "size", "which", "why"), rows))
        word = "removed" if yes else "would go; --yes removes it"
        say(f"{len(found)} things, {nbytes(total)} {word}" if found else "nothing lies around")
        if yes and len(removed) < len(items):
            say(f"{len(items) - len(removed)} were taken up again meanwhile, and stay")


def _check(database: Database) -> None:
    """
    Raises:
        CliError: this database cannot say what is needed.
    """
    require_schema(database)
    if (to := moved_to(database)) is not None:
        raise CliError(
            f"this database was moved to {to}: it does not know what is needed there", cure=cure_of_moved(database)
        )


def _facts(item: Item) -> dict[str, Any]:
    return {"kind": item.kind, "name": item.name, "nbytes": item.nbytes, "reason": item.reason}
