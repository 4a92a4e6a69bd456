"""How much room is left where something lies, or will."""

from __future__ import annotations

import shutil
from pathlib import Path


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above that is there."""
    return next(there for there in (path, *path.parents) if there.exists())


def free_bytes(path: Path) -> int:
    """Bytes that can still be written below a path, which need not be there yet."""
    return shutil.disk_usage(existing(path)).free
