"""What a query may cost, what it brought, and what it was not allowed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from results_db.errors import ResultsDbError

LIST_VIEWS = "the page /sql, GET /api/v1/sql/views and `bitbudget sql --views` list the views and their columns"


class Refusal(StrEnum):
    """Why a query brought nothing; words that stay."""

    NOT_ALLOWED = "not-allowed"  #: it is no single SELECT on the views, or calls what is not on the list
    INVALID = "invalid"  #: it is no valid SQL, names what is not there, or lacks a parameter
    TIMEOUT = "timeout"  #: its time ran out
    TOO_LARGE = "too-large"  #: a value, or the memory that it needs, is beyond the limit
    BUSY = "busy"  #: as many queries run as may
    STOPPED = "stopped"  #: whoever asked has gone
    UNAVAILABLE = "unavailable"  #: no database, or not fenced


class QueryRefused(ResultsDbError):
    """The query brought nothing; the message says why, the cure what would help."""

    def __init__(self, why: Refusal, message: str, *, cure: str | None = None) -> None:
        super().__init__(message)
        self.why = why
        self.cure = cure


class Reach(StrEnum):
    """What a query may read."""

    VIEWS = "views"  #: the views of the contract: for whoever asks over HTTP
    TABLES = "tables"  #: every table but secrets: for who holds the database's URL


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a query may cost."""

    rows: int = 1000
    #: of the answer as JSON
    nbytes: int = 5_000_000
    seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Result:
    """Columns and rows; values are JSON's types."""

    columns: tuple[str, ...]
    rows: list[list[Any]]
    #: why there are fewer rows than the query has: "rows", "bytes", or None where all are here
    truncated: str | None
    seconds: float
