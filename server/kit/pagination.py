"""Keyset pages: sorted by what a list offers, with a cursor that survives rows coming and going.

A page's cursor holds the sorted values of its last row, and the next page begins beyond them: no row is shown twice or
left out because others were added or removed meanwhile. (A row whose sorted value changes moves, and may be met twice.)
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from fastapi import Query, Request
from pydantic import AwareDatetime
from sqlalchemy import ColumnElement, Select, and_, inspect, or_
from sqlalchemy.orm import InstrumentedAttribute, Session

from results_db.base import Base
from results_db.clock import UtcDateTime
from server.kit.answers import plain
from server.kit.problem import Problem, invalid

#: of an INTEGER column
LARGEST_ID = 2**31 - 1
_LARGEST = 2**63 - 1

#: of the query; what is left names the list that a cursor belongs to
_NOT_BOUND = frozenset({"cursor", "limit", "sort", "order"})


@dataclass(frozen=True, slots=True)
class SortKey:
    """One column to sort by; nulls come last either way, on both databases."""

    column: InstrumentedAttribute[Any]
    descending: bool

    def order_by(self) -> tuple[ColumnElement[Any], ...]:
        """The terms of ORDER BY."""
        direction = self.column.desc() if self.descending else self.column.asc()
        return (self.column.is_(None), direction) if _nullable(self.column) else (direction,)

    def beyond(self, value: Any) -> ColumnElement[bool] | None:
        """Rows that come after this value; None where there can be none."""
        if value is None:
            return None
        further = self.column < value if self.descending else self.column > value
        return or_(further, self.column.is_(None)) if _nullable(self.column) else further

    def same(self, value: Any) -> ColumnElement[bool]:
        """Rows that have this value."""
        return self.column.is_(None) if value is None else self.column == value


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which part of a list."""

    limit: int
    #: the primary key is the last
    keys: tuple[SortKey, ...]
    #: of the last row of the page before, one value a key; None = from the first
    after: tuple[Any, ...] | None
    #: identifies list, filters and sorting: a cursor of another query is refused
    binding: str
    conditions: tuple[ColumnElement[bool], ...] = ()

    def cursor(self, row: Any) -> str:
        """Where the next page begins."""
        values = [plain(getattr(row, key.column.key)) for key in self.keys]
        return base64.urlsafe_b64encode(json.dumps([self.binding, *values]).encode()).decode().rstrip("=")


def listing(table: type[Base], *sorts: str) -> Callable[..., PageRequest]:
    """A dependency: limit, cursor, sort and order of a list of ``table``'s rows, and when they were made.

    ``sorts`` are the columns that a caller may sort by besides the id, which orders by time of birth.
    """
    key: InstrumentedAttribute[Any] = getattr(table, str(inspect(table).primary_key[0].key))
    columns = {name: getattr(table, name) for name in (key.key, *sorts)}
    created: InstrumentedAttribute[Any] = getattr(table, "created_at")  # noqa: B009 - not every Base has it
    offered = ", ".join(columns)
    limit_query = Query(50, ge=1, le=1000, description="rows a page")
    cursor_query = Query(None, max_length=2000, description="`next` of the page before; same filters, same sorting")
    sort_query = Query(
        None,
        max_length=200,
        description=f"columns with commas between them, each with `-` in front to have it descending: {offered}",
        examples=[f"{sorts[-1]},-{key.key}" if sorts else key.key],
    )
    order_query = Query(
        None, description="of columns without `-`; default: asc, and without `sort` desc, which is newest first"
    )
    after_query = Query(None, description="only rows made at this time or later")
    before_query = Query(None, description="only rows made before this time")

    def page(
        request: Request,
        limit: int = limit_query,
        cursor: str | None = cursor_query,
        sort: str | None = sort_query,
        order: Literal["asc", "desc"] | None = order_query,
        created_after: AwareDatetime | None = after_query,
        created_before: AwareDatetime | None = before_query,
    ) -> PageRequest:
        keys = _keys(sort, order, columns, key)
        binding = _binding(request, keys)
        conditions: list[ColumnElement[bool]] = []
        if created_after is not None:
            conditions.append(created >= created_after)
        if created_before is not None:
            conditions.append(created < created_before)
        after = _decode(cursor, keys, binding) if cursor else None
        return PageRequest(limit, keys, after, binding, tuple(conditions))

    return page


def paginate(
    session: Session, query: Select[Any], page: PageRequest, show: Callable[[Any], Any] = lambda row: row
) -> dict[str, Any]:
    """``{"items": rows, "next": cursor or null}`` of a SELECT of one entity, in one statement."""
    for condition in page.conditions:
        query = query.where(condition)
    if page.after is not None:
        query = query.where(_beyond(page.keys, page.after))
    terms = [term for key in page.keys for term in key.order_by()]
    rows = session.scalars(query.order_by(*terms).limit(page.limit + 1)).all()
    items = rows[: page.limit]
    more = len(rows) > page.limit
    return {"items": [show(row) for row in items], "next": page.cursor(items[-1]) if more else None}


def _keys(
    sort: str | None, order: str | None, columns: dict[str, InstrumentedAttribute[Any]], key: InstrumentedAttribute[Any]
) -> tuple[SortKey, ...]:
    descending = order == "desc" if order is not None else sort is None
    keys: dict[str, SortKey] = {}
    for term in (sort or "").split(",") if sort is not None else ():
        name = term.strip().removeprefix("-")
        if name not in columns:
            raise invalid("sort", f"no column {name[:80]!r} to sort by: choose out of {', '.join(columns)}")
        if name in keys:
            raise invalid("sort", f"{name} is named twice")
        keys[name] = SortKey(columns[name], descending or term.strip().startswith("-"))
    keys.setdefault(key.key, SortKey(key, descending))
    # beyond the key nothing can differ
    names = list(keys)
    return tuple(keys[name] for name in names[: names.index(key.key) + 1])


def _beyond(keys: Sequence[SortKey], values: Sequence[Any]) -> ColumnElement[bool]:
    """Rows after these values in lexicographic order."""
    ways = []
    for position, key in enumerate(keys):
        further = key.beyond(values[position])
        if further is not None:
            ways.append(and_(*(keys[i].same(values[i]) for i in range(position)), further))
    return or_(*ways)


def _binding(request: Request, keys: Sequence[SortKey]) -> str:
    asked = sorted((name, value) for name, value in request.query_params.multi_items() if name not in _NOT_BOUND)
    spelled = [request.url.path, asked, [(key.column.key, key.descending) for key in keys]]
    return hashlib.sha256(json.dumps(spelled).encode()).hexdigest()[:12]


def _decode(cursor: str, keys: Sequence[SortKey], binding: str) -> tuple[Any, ...]:
    try:
        found = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise _no_cursor() from error
    if not (isinstance(found, list) and found and isinstance(found[0], str)):
        raise _no_cursor()
    if found[0] != binding:
        raise invalid(
            "cursor", "this cursor belongs to another list, filter or sorting: begin that query without a cursor"
        )
    if len(found) != len(keys) + 1:
        raise _no_cursor()
    return tuple(_value(value, key) for value, key in zip(found[1:], keys, strict=True))


def _value(value: Any, key: SortKey) -> Any:
    """A cursor's value as the column has it; cursors come from outside, so nothing else reaches the database."""
    kind = datetime if isinstance(key.column.type, UtcDateTime) else key.column.type.python_type
    if value is None and _nullable(key.column):
        return None
    if kind is datetime and isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError as error:
            raise _no_cursor() from error
        if moment.tzinfo is not None:
            return moment
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    whole = kind is int and type(value) is int and abs(value) <= _LARGEST
    if whole or (kind in (str, bool) and type(value) is kind and "\0" not in str(value)):
        return value
    raise _no_cursor()


def _no_cursor() -> Problem:
    return invalid("cursor", "not a cursor of this service: take `next` of the page before")


def _nullable(column: InstrumentedAttribute[Any]) -> bool:
    return bool(column.property.columns[0].nullable)
