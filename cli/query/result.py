"""What a query brought, and what it was not allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cli.errors import CliError


class QueryRefused(CliError):
    """The query is not a single reading statement, took too long, or is not valid SQL."""


@dataclass(frozen=True)
class Limits:
    """How much a query may cost."""

    rows: int = 1000
    seconds: float = 30.0


@dataclass(frozen=True)
class Result:
    """Columns and at most ``Limits.rows`` rows."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    #: whether there were more rows than were fetched
    cut: bool
