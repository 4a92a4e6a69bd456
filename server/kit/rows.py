"""Small questions that every domain asks of the database."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, TypeVar

from fastapi import Query
from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from results_db.base import Base
from results_db.errors import NotFound
from server.kit.pagination import LARGEST_ID

Row = TypeVar("Row", bound=Base)

Number = Annotated[int | None, Query(ge=0, le=LARGEST_ID)]
NameContains = Annotated[str | None, Query(max_length=200, description="part of the name, in any case")]
Stale = Annotated[
    bool | None, Query(description="true: only what rests on a measurement that counts no more; false: the others")
]


def get_row(session: Session, table: type[Row], id_: str) -> Row:
    """The row with this id.

    Raises:
        NotFound: there is none; the noun is the table's class name in lower case.
    """
    row = session.get(table, id_)
    if row is None:
        raise NotFound(table.__name__.lower(), id_)
    return row


def filtered(query: Select[Any], filters: Mapping[Any, Any]) -> Select[Any]:
    """``query`` restricted to rows whose columns equal the given values; None restricts nothing."""
    for column, value in filters.items():
        if value is not None:
            query = query.where(column == value)
    return query


def one_of(query: Select[Any], column: InstrumentedAttribute[Any], values: Collection[str] | None) -> Select[Any]:
    """``query`` restricted to rows that have one of these values; None and nothing restrict nothing."""
    return query.where(column.in_([str(value) for value in values])) if values else query


def containing(query: Select[Any], column: InstrumentedAttribute[Any], part: str | None) -> Select[Any]:
    """``query`` restricted to rows whose text contains ``part`` literally, in any case; None restricts nothing."""
    return query if part is None else query.where(column.icontains(part, autoescape=True))


def marked(query: Select[Any], column: InstrumentedAttribute[Any], wanted: bool | None) -> Select[Any]:
    """``query`` restricted to rows where the column has a value (or has none); None restricts nothing."""
    return query if wanted is None else query.where(column.is_not(None) if wanted else column.is_(None))
