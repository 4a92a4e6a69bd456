"""Small questions that every domain asks of the database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from results_db.base import Base
from results_db.errors import NotFound

Row = TypeVar("Row", bound=Base)


def get_row(session: Session, table: type[Row], id_: str) -> Row:
    """The row with this id.

    Raises:
        NotFound: there is none; the noun is the table's class name in lower case.
    """
    row = session.get(table, id_)
    if row is None:
        raise NotFound(table.__name__.lower(), id_)
    return row


def filtered(query: Select[Any], filters: Mapping[InstrumentedAttribute[Any], Any]) -> Select[Any]:
    """``query`` restricted to rows whose columns equal the given values; None restricts nothing."""
    for column, value in filters.items():
        if value is not None:
            query = query.where(column == value)
    return query
