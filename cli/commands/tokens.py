"""`bitbudget tokens`: who may call the server. Straight on the database, so that the first needs no other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import typer

from cli.database import open_database, require_schema
from cli.errors import CliError
from cli.options import JsonOption
from cli.output import out, print_json, say, table
from results_db import Database
from results_db.errors import NotFound
from results_db.migrate import present_revision, upgrade
from results_db.tables import Token
from results_db.tokens import Scope, TokenRefused, create_token, is_usable, list_tokens, parse_age, revoke_token

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke the tokens that the server asks for.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who or what it is for: laptop, nightly-sweep, …")],
    scope: Annotated[
        Scope, typer.Option(help="read: whatever changes nothing; write: jobs, studies, models too; admin: everything.")
    ],
    expires: Annotated[
        str | None, typer.Option(metavar="AGE", help="12h, 30d or 8w from now. Default: when it is revoked.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token and print it, once: only its hash is kept.

    It works at once, without a restart of the server.

    \b
    Examples:
      bitbudget tokens create laptop --scope write
      (umask 077; bitbudget tokens create ci --scope read --expires 30d > ci.token)
    """
    with _database() as database:
        try:
            lasts = None if expires is None else parse_age(expires)
            with database.write() as session:
                made = create_token(session, name, scope, lasts=lasts)
                shown, secret = _shown(made.row), made.secret
        except TokenRefused as error:
            raise CliError(str(error)) from error
    if as_json:
        print_json(shown | {"token": secret})
        return
    sys.stdout.write(secret + "\n")
    ends = "until it is revoked" if shown["expires_at"] is None else f"until {shown['expires_at']}"
    say(f"token {name} may {scope.value}, {ends}; it is shown this once")


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """Every token: its first characters, scope, last use (to the minute), and whether it still works.

    \b
    Example:
      bitbudget tokens list
    """
    with _database() as database, database.read() as session:
        rows = [_shown(token) for token in list_tokens(session)]
    if as_json:
        print_json(rows)
        return
    columns = ("name", "hint", "scope", "state", "created_at", "last_used_at", "expires_at", "id")
    out().print(table(columns, [[row[column] for column in columns] for row in rows]))


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name or id of a token that works.")], as_json: JsonOption = False
) -> None:
    """Make a token useless from now on. Browsers that logged in with it are logged out.

    \b
    Example:
      bitbudget tokens revoke laptop
    """
    with _database() as database:
        try:
            with database.write() as session:
                shown = _shown(revoke_token(session, name))
        except NotFound as error:
            raise CliError(str(error), cure="`bitbudget tokens list` shows those that work") from error
    if as_json:
        print_json(shown)
    else:
        say(f"token {shown['name']} ({shown['hint']}…) lets nobody in any more")


@contextmanager
def _database() -> Iterator[Database]:
    """The settings' database, with this code's schema; an empty one gets it."""
    with open_database(None) as database:
        if present_revision(database) is None:
            upgrade(database)
        require_schema(database)
        yield database


def _shown(token: Token) -> dict[str, Any]:
    """A token's row for people and programs: without its hash."""
    state = "works" if is_usable(token) else "expired" if token.revoked_at is None else "revoked"
    values = {name: getattr(token, name) for name in ("id", "name", "hint", "scope")} | {"state": state}
    times = ("created_at", "last_used_at", "expires_at", "revoked_at")
    return values | {name: _time(getattr(token, name)) for name in times}


def _time(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat(timespec="seconds").replace("+00:00", "Z")
