"""What a table holds, in one number: equal rows give equal hashes on SQLite and on PostgreSQL, in any order.

A row's hash is SHA-256 of its values in a form that does not depend on the database; a table's is the sum of its rows'.
JSONB keeps numbers as decimals, so 1e16 comes back as an integer: numbers inside JSON count by their decimal value.
Minus zero counts as zero: JSONB and SQLite's columns keep no sign of it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

_MODULUS = 1 << 256


class ContentHash:
    """The hash of a table while its rows go by."""

    def __init__(self) -> None:
        self.n_rows = 0
        self._sum = 0

    def add(self, rows: Iterable[Sequence[Any]]) -> None:
        """Count these rows, their values in the table's order of columns."""
        for row in rows:
            self._sum += int.from_bytes(hashlib.sha256(b"".join(map(_bytes, row))).digest())
            self.n_rows += 1

    @property
    def hex(self) -> str:
        """64 hex digits."""
        return f"{self._sum % _MODULUS:064x}"


def _bytes(value: Any) -> bytes:
    """A column's value: a letter for its kind, then the value; variable lengths are said first."""
    match value:
        case None:
            return b"0"
        case bool():
            return b"T" if value else b"F"
        case int():
            return b"i%d;" % value
        case float():
            return b"f" + struct.pack(">d", value + 0.0)
        case str():
            return _text(value)
        case datetime():
            return b"t" + value.astimezone(UTC).isoformat(timespec="microseconds").encode()
        case Mapping() | list():
            return b"j" + _json(value)
    raise TypeError(f"no column of ours holds a {type(value).__name__}")


def _json(value: Any) -> bytes:
    match value:
        case None:
            return b"0"
        case bool():
            return b"T" if value else b"F"
        case int() | float():
            return b"n" + _number(value)
        case str():
            return _text(value)
        case Mapping():
            items = sorted((_text(str(key)), _json(item)) for key, item in value.items())
            return b"{%d;" % len(items) + b"".join(key + item for key, item in items)
        case list():
            return b"[%d;" % len(value) + b"".join(map(_json, value))
    raise TypeError(f"JSON holds no {type(value).__name__}")


def _number(number: int | float) -> bytes:
    """1e16 and 10000000000000000 are one; a float that is no integer is its shortest decimal, which both keep."""
    if isinstance(number, float):
        if not number.is_integer():  # nor are NaN and infinities, which SQLite keeps as Python writes them
            return f"{number!r};".encode()
        number = int(number) if abs(number) < 2**53 else int(Decimal(repr(number)))
    return b"%d;" % number


def _text(value: str) -> bytes:
    encoded = value.encode(errors="surrogatepass")
    return b"s%d;" % len(encoded) + encoded
