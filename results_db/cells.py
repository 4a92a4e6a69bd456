"""Values of the database as files have them: JSON's types, and CSV that no spreadsheet takes for a program."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

#: a spreadsheet takes a text that begins with one of these for a formula, some also their wide forms; \t, \r and \n
#: open one where they are skipped
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def plain(value: Any, other: Callable[[Any], Any] = str) -> Any:
    """A value of either database in JSON's types: aware times in UTC as ISO 8601 with Z, NaN and infinity as null,
    bytes as hexadecimal digits; ``other`` makes what it is of anything else."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z") if value.tzinfo else value.isoformat()
        case Decimal():
            return plain(float(value))
        case bytes() | bytearray() | memoryview():
            return bytes(value).hex()
        case Mapping():
            return {str(key): plain(item, other) for key, item in value.items()}
        case list() | tuple():
            return [plain(item, other) for item in value]
    return other(value)


def json_text(value: Any) -> str:
    """Compact JSON of what :func:`plain` made."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def csv_cell(value: Any) -> Any:
    """A cell of a CSV file: objects and lists as JSON, and an apostrophe before a text that a spreadsheet would run."""
    value = plain(value)
    if isinstance(value, dict | list):
        return json_text(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def csv_lines(rows: Iterable[Sequence[Any]]) -> str:
    """The rows as CSV, a line each; null is an empty cell."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([csv_cell(value) for value in row] for row in rows)
    return buffer.getvalue()
