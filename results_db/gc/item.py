"""One thing that may go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Item:
    """A folder, a file, or rows of one kind."""

    #: "artefact", "artefact row", "workspace", "remote copy", "leftover", "crash report", "idempotency keys",
    #: "page sessions"
    kind: str
    #: a path or URI, or the number of rows in words
    name: str
    #: on disk; rows count as 0
    nbytes: int
    reason: str
    #: looks once more whether nobody needs it, and removes it; whether it did
    remove: Callable[[], bool] = field(repr=False, compare=False)
