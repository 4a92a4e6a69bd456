"""The token that this command sends: from a file or from the environment, never from the command line itself.

A command line is read by everybody on the machine (``ps``), and stays in the shell's history.
"""

from __future__ import annotations

import os
import re
from contextvars import ContextVar
from pathlib import Path

from cli.errors import CliError

TOKEN, TOKEN_FILE = "BITBUDGET_TOKEN", "BITBUDGET_TOKEN_FILE"
_TOKEN = re.compile(r"bb_[A-Za-z0-9_-]{43}")


#: what --token-file of this command said
_option: ContextVar[str | None] = ContextVar("token_file", default=None)


def use_token_file(name: str | None) -> None:
    """Take the token from this file for the rest of the command; None = look into the environment."""
    _option.set(name)


def find_token() -> str | None:
    """The token of --token-file, else of BITBUDGET_TOKEN, else of BITBUDGET_TOKEN_FILE; None where none is set.

    Raises:
        CliError: the file cannot be read, or what is set is no token. It is not shown.
    """
    if (option := _option.get()) is not None:
        return _checked(_read(Path(option)), f"--token-file {option}")
    if text := os.environ.get(TOKEN, ""):
        return _checked(text, TOKEN)
    if name := os.environ.get(TOKEN_FILE, ""):
        return _checked(_read(Path(name)), f"{TOKEN_FILE}={name}")
    return None


def _read(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(
            f"the token file {path} cannot be read: {getattr(error, 'strerror', None) or error}",
            cure="write the token into it: bitbudget tokens create NAME --scope write > FILE",
        ) from error


def _checked(text: str, where: str) -> str:
    token = text.strip()
    if not _TOKEN.fullmatch(token):
        raise CliError(
            f"{where} holds no token: one is bb_ and 43 more characters",
            cure="make one where the database is: bitbudget tokens create NAME --scope write",
        )
    return token
