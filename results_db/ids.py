"""Row identifiers: a prefix, 11 hex digits of milliseconds, 12 random ones; they sort by time of birth."""

from __future__ import annotations

import secrets
import time


def new_id(prefix: str) -> str:
    """For example ``job_0192f3a4b5c9f1e2d3c4b5a`` (letters, digits and ``_`` only, as RQ job ids demand)."""
    return f"{prefix}_{time.time_ns() // 1_000_000:011x}{secrets.token_hex(6)}"
