"""JSON answers: datetimes end in Z, NaN and infinity are null, rows are their columns."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args, get_type_hints

from fastapi.responses import JSONResponse
from pydantic import BaseModel, create_model
from starlette.responses import Response

from results_db import cells
from results_db.base import Base


def plain(value: Any) -> Any:
    """``value`` as JSON has it: rows and models as objects, aware datetimes as ISO 8601 in UTC, no NaN."""
    return cells.plain(value, _object)


def _object(value: Any) -> Any:
    match value:
        case Base():
            return plain(value.as_dict())
        case BaseModel():
            return plain(value.model_dump(mode="json"))
        case set() | frozenset():
            return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no JSON form here")


def to_json(value: Any) -> str:
    """Compact JSON text of ``plain(value)``."""
    return cells.json_text(plain(value))


class Answer(JSONResponse):
    """A JSON response in the house's form."""

    def render(self, content: Any) -> bytes:
        # a lone surrogate, which JSON may escape and UTF-8 cannot say, becomes a question mark
        return to_json(content).encode(errors="replace")


class Answered(Exception):
    """Raised where a request's own transaction must be rolled back although its answer is no problem."""

    def __init__(self, response: Response) -> None:
        super().__init__("the request is answered already")
        self.response = response


def accepted(content: Any, location: str) -> Response:
    """202 with the address where progress can be followed."""
    return Answer(content, status_code=202, headers={"Location": location})


def created(content: Any, location: str) -> Response:
    """201 with the new thing's address."""
    return Answer(content, status_code=201, headers={"Location": location})


@cache
def row_model(
    table: type[Base], name: str | None = None, *, without: tuple[str, ...] = (), **extras: Any
) -> type[BaseModel]:
    """A pydantic model of a table's columns (and extra fields), for the OpenAPI document only."""
    fields: dict[str, Any] = {}
    hints = get_type_hints(table)
    for column in table.__mapper__.column_attrs:
        if column.key in without:
            continue
        # the annotation, since a JSON column does not say whether it holds a list or an object
        (kind,) = get_args(hints[column.key])
        fields[column.key] = (kind, ...)
    fields |= {extra: (kind, ...) for extra, kind in extras.items()}
    return create_model(name or table.__name__, **fields)


@cache
def page_model(item: type[BaseModel]) -> type[BaseModel]:
    """A page of ``item``, for the OpenAPI document only."""
    return create_model(f"{item.__name__}Page", items=(list[item], ...), next=(str | None, ...))  # type: ignore[valid-type]
