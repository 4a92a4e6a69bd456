"""How the command line speaks: results to stdout, everything about them to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text


def out() -> Console:
    """Where results go. Made at each use: tests and pipes change the stream underneath."""
    return _console(sys.stdout)


def err() -> Console:
    """Where progress and messages go."""
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    """As wide as the terminal; a file or pipe has no width, so nothing is folded there unless COLUMNS says so."""
    width = None if stream.isatty() or "COLUMNS" in os.environ else 200
    return Console(file=stream, highlight=False, soft_wrap=not stream.isatty(), width=width)


def say(message: str) -> None:
    """One line about what happens."""
    err().print(Text(message))


def print_json(value: Any) -> None:
    """A result for programs, indented for people."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_json_line(value: Any) -> None:
    """One line of a stream for programs."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> Table:
    """A plain table; numbers to the right, nothing interpreted as markup, nothing cut."""
    rows = [list(row) for row in rows]
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", title_style="bold")
    for index, name in enumerate(columns):
        values = [row[index] for row in rows if row[index] is not None]
        numeric = bool(values) and all(isinstance(value, int | float) for value in values)
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(value if isinstance(value, Text) else Text(cell(value)) for value in row))
    return shown


def cell(value: Any) -> str:
    """One value as a table shows it."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case Mapping() | list():
            return json.dumps(value, ensure_ascii=False)
    return str(value)


def short_path(path: Path) -> str:
    """The path as short as it can be told from the working directory."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def nbytes(n: int) -> str:
    """Bytes for people: ``812 bytes``, ``3.45 MB`` (10⁶), ``1.20 GB`` (10⁹)."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return f"{n} bytes"


def duration(seconds: float | None) -> str:
    """Seconds for people: ``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds is None:
        return "–"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def parse_time(text: str | None) -> datetime | None:
    """An ISO 8601 time of the API."""
    return None if text is None else datetime.fromisoformat(text).astimezone(UTC)
