"""What the text of a query is made of: texts, names, numbers and marks.

It is no parser: it refuses every form that could be read in two ways (``E'…'``, ``U&'…'``, ``$tag$``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from results_db.sql.result import QueryRefused, Refusal

_TOKEN = re.compile(
    r"""
      (?P<blank>[ \t\r\n\f\v]+ | --[^\r\n]*)
    | (?P<text>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")+")
    | (?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)? | \.\d+(?:[eE][+-]?\d+)?)
    | (?P<word>[A-Za-z_\x80-\U0010ffff][\w$]*)
    | (?P<param>:[A-Za-z_][A-Za-z0-9_]*)
    | (?P<mark>:: | [()\[\],;.:] | [-+*/<>=~!@%^&|?]+)
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the text."""

    kind: Literal["text", "quoted", "number", "word", "param", "mark"]
    text: str
    start: int
    end: int

    @property
    def name(self) -> str | None:
        """What it names, as PostgreSQL folds it; None for what is no name."""
        if self.kind == "word":
            return self.text.lower()
        return self.text[1:-1].replace('""', '"') if self.kind == "quoted" else None

    def says(self, *words: str) -> bool:
        return self.kind in ("word", "mark") and self.text.lower() in words


def tokens_of(sql: str) -> Iterator[Token]:
    """Without blanks and comments.

    Raises:
        QueryRefused: not-allowed: what is not understood, or could be read in two ways.
    """
    position = 0
    while position < len(sql):
        if sql.startswith("/*", position):
            position = _end_of_comment(sql, position)
            continue
        match = _TOKEN.match(sql, position)
        if match is None or match.lastgroup is None:
            raise not_allowed(f"{sql[position : position + 20]!r} is not understood here")
        start, position = position, match.end()
        if match.lastgroup == "blank":
            continue
        token = Token(match.lastgroup, match.group(), start, position)  # type: ignore[arg-type]
        if "$" in token.text and token.kind == "word":
            raise not_allowed("names with a dollar sign are not understood here")
        if token.kind == "word" and re.match(r"'|&['\"]", sql[position : position + 2]):
            raise not_allowed(f"texts are written '…', without {token.text[:20]!r} before them")
        if token.kind == "mark" and ("--" in token.text or "/*" in token.text):
            raise not_allowed("leave a blank before a comment")
        yield token


def _end_of_comment(sql: str, start: int) -> int:
    depth, position = 0, start
    while True:
        match = re.compile(r"/\*|\*/").search(sql, position)
        if match is None:
            raise not_allowed("a comment does not end")
        depth += 1 if match.group() == "/*" else -1
        position = match.end()
        if depth == 0:
            return position


def not_allowed(message: str) -> QueryRefused:
    """The refusal with what would help."""
    return QueryRefused(Refusal.NOT_ALLOWED, message, cure="write one SELECT on the views; changes go through the API")
