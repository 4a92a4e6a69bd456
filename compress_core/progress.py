"""Progress: how a long computation tells its caller how far it is, and how the caller stops it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with ``done`` of ``total`` units of work finished and one line of text.

    It may raise :class:`compress_core.errors.Interrupted`: the computation then stops and leaves no partial file
    under a final name.
    """

    def __call__(self, done: int, total: int, message: str) -> None: ...


def silent(done: int, total: int, message: str) -> None:
    """The default progress: nobody listens."""
