"""The cause that a job or an attempt shows of its end: {"code", "message", "type", "traceback", "retryable"}."""

from __future__ import annotations

import traceback
from typing import Any

from results_db.masking import mask

#: a traceback keeps its end, which names the cause
_TRACEBACK_CHARACTERS = 20_000


def cause_of(error: BaseException, code: str, *, retryable: bool) -> dict[str, Any]:
    """What is kept of an error; its notes come before its message.

    Args:
        retryable: whether the same job could succeed later.
    """
    lines = "".join(traceback.format_exception(error))
    about = "".join(f"{note}: " for note in reversed(getattr(error, "__notes__", [])))
    return {
        "code": code,
        "message": _clean(f"{about}{error}".strip() or type(error).__name__),
        "type": f"{type(error).__module__}.{type(error).__qualname__}",
        "traceback": _clean(lines[-_TRACEBACK_CHARACTERS:]),
        "retryable": retryable,
    }


def _clean(text: str) -> str:
    """The page shows it: without passwords and tokens. PostgreSQL's text knows no NUL."""
    return mask(text).replace("\x00", "\\0")
