"""Keyset pages: newest first, a cursor that survives rows coming and going."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Depends, Query
from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from server.kit.problem import invalid

#: of an INTEGER column
LARGEST_ID = 2**31 - 1


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which part of a list."""

    limit: int
    order: Literal["asc", "desc"]
    #: the last id of the page before
    after: str | int | None


def _page_request(
    limit: Annotated[int, Query(ge=1, le=1000, description="rows a page")] = 50,
    cursor: Annotated[str | None, Query(description="`next` of the page before")] = None,
    order: Annotated[Literal["asc", "desc"], Query(description="desc: newest first")] = "desc",
) -> PageRequest:
    return PageRequest(limit, order, _decode(cursor) if cursor else None)


PageQuery = Annotated[PageRequest, Depends(_page_request)]


def paginate(
    session: Session, query: Select[Any], key: InstrumentedAttribute[Any], page: PageRequest
) -> dict[str, Any]:
    """``{"items": rows, "next": cursor or null}`` of a SELECT of one entity whose primary key is ``key``."""
    if page.after is not None:
        if isinstance(page.after, int) != (key.type.python_type is int):
            raise invalid("cursor", "this cursor belongs to another list")
        query = query.where(key > page.after if page.order == "asc" else key < page.after)
    query = query.order_by(key.asc() if page.order == "asc" else key.desc()).limit(page.limit + 1)
    rows = session.scalars(query).all()
    items = rows[: page.limit]
    more = len(rows) > page.limit
    return {"items": list(items), "next": _encode(getattr(items[-1], key.key)) if more else None}


def _is_id(value: Any) -> bool:
    return isinstance(value, str) or (type(value) is int and 0 <= value <= LARGEST_ID)


def _encode(last: str | int) -> str:
    return base64.urlsafe_b64encode(json.dumps([last]).encode()).decode().rstrip("=")


def _decode(cursor: str) -> str | int:
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError) as error:
        raise invalid("cursor", "not a cursor of this service: take `next` of the page before") from error
    if not (isinstance(values, list) and len(values) == 1 and _is_id(values[0])):
        raise invalid("cursor", "not a cursor of this service: take `next` of the page before")
    return values[0]
