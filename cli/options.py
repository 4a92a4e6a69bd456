"""Options that commands share, and what they mean."""

from __future__ import annotations

import os
from functools import cache
from typing import Annotated

import typer
from pydantic import ValidationError

from cli.api import Api
from cli.credential import find_token
from cli.errors import CliError
from cli.output import say
from cli.stack.plan import server_url
from cli.stack.record import running_stack
from results_db.setting_docs import unknown_sentences
from results_db.settings import Settings

ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        envvar="BITBUDGET_SERVER",
        metavar="URL",
        help="The server. Default: the running stack of ./var, else BITBUDGET_HOST and BITBUDGET_PORT.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, for programs.")]


def settings(port: int | None = None) -> Settings:
    """Settings of this process; an explicit port wins over BITBUDGET_PORT.

    Raises:
        CliError: a BITBUDGET_* variable has no valid value.
    """
    _warn_of_unknown()
    try:
        return Settings() if port is None else Settings(port=port)
    except ValidationError as error:
        first = error.errors()[0]
        name = "".join(f"_{part}" for part in first["loc"]).upper()
        message = first["msg"].removeprefix("Value error, ")
        # a URL may hold a password, and what concerns several variables has all of them as its input
        given = f", not {first['input']!r}" if name and not name.endswith("_URL") else ""
        raise CliError(
            f"BITBUDGET{name}: {message}{given}" if name else message,
            cure="correct the BITBUDGET_ variable or unset it",
        ) from error


@cache
def _warn_of_unknown() -> None:
    """A misspelt variable would be silently without effect. Once a process is enough."""
    for sentence in unknown_sentences(Settings, os.environ):
        say(f"warning: {sentence}")


def connect(server: str | None) -> Api:
    """The API of the server that was named, of the running stack, or of the settings."""
    if server is None:
        current = settings()
        record = running_stack(current.var_dir)
        server = record.url if record is not None else server_url(current.host, current.port)
    if "://" not in server:
        server = f"http://{server}"
    return Api(server, token=find_token())
