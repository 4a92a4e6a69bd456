"""Values that one of the two databases cannot hold, found before they are sent to it, so that the row can be named."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Column, DateTime, Double, Integer, String
from sqlalchemy.types import TypeDecorator, TypeEngine

#: PostgreSQL's integer and bigint; SQLite's integers are as long as bigint
_INT32, _INT64 = 2**31, 2**63
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
#: what stands where a character stood that PostgreSQL has not
_REPLACEMENT = "\ufffd"

#: what is wrong with a value, or None
Check = Callable[[Any], str | None]


def checks_for(columns: list[Column[Any]], *, to_sqlite: bool) -> list[Check | None]:
    """For each column, what finds values that the target cannot hold; None where there are none."""
    return [_check_for(column, to_sqlite=to_sqlite) for column in columns]


def mended(value: Any) -> Any:
    """The nearest value that both databases hold: NaN and infinities in JSON become null, NUL and lone surrogates �."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case str():
            return _UNSTORABLE.sub(_REPLACEMENT, value)
        case Mapping():
            return {mended(key): mended(item) for key, item in value.items()}
        case list():
            return [mended(item) for item in value]
    return value


def _check_for(column: Column[Any], *, to_sqlite: bool) -> Check | None:
    kind = _plain_type(column.type)
    if isinstance(kind, Double):
        return _no_nan if to_sqlite else None
    if isinstance(kind, BigInteger):
        return None if to_sqlite else _fits(_INT64)
    if isinstance(kind, Integer):
        return None if to_sqlite else _fits(_INT32)
    if to_sqlite:
        return None  # what PostgreSQL holds as text or JSON is valid anywhere
    if isinstance(kind, JSON):
        return _in_json
    return _in_text if isinstance(kind, String) else None


def _plain_type(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    if isinstance(kind, TypeDecorator):
        return DateTime() if kind.python_type is datetime else kind.impl_instance
    return kind


def _no_nan(value: Any) -> str | None:
    return "NaN, which SQLite stores as null" if value is not None and math.isnan(value) else None


def _fits(limit: int) -> Check:
    def check(value: Any) -> str | None:
        if value is None or -limit <= value < limit:
            return None
        return f"{value}, which does not fit a column of {limit.bit_length()} bits"

    return check


def _in_text(value: Any) -> str | None:
    if isinstance(value, str) and (match := _UNSTORABLE.search(value)):
        return f"the character {match[0].encode('unicode_escape').decode()}, which PostgreSQL cannot store"
    return None


def _in_json(value: Any) -> str | None:
    match value:
        case float():
            return None if math.isfinite(value) else f"{value!r}, which JSON does not have"
        case str():
            return _in_text(value)
        case Mapping():
            return next(filter(None, (_in_json(part) for item in value.items() for part in item)), None)
        case list():
            return next(filter(None, map(_in_json, value)), None)
    return None
