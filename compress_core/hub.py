"""What names a model or a dataset on the hub: ORGANISATION/NAME, pinned by the 40 hex digits of a commit."""

from __future__ import annotations

import re

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"{_PART}/{_PART}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
#: the hub's own limits: a longer id names nothing, and its client keeps ``--`` for itself
_LONGEST = 96
_NEVER = ("--", "..")


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a hub id; it says nothing about whether one is there."""
    return len(text) <= _LONGEST and _HUB_ID.fullmatch(text) is not None and not any(never in text for never in _NEVER)


def is_commit(text: str | None) -> bool:
    """Whether a text is a whole commit hash: a branch or a tag could mean something else tomorrow."""
    return text is not None and _COMMIT.fullmatch(text) is not None
