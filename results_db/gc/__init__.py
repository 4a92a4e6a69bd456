"""What lies around and is of no more use: found first, removed only when asked."""

from __future__ import annotations

from results_db.gc.collect import find_garbage, moved_marker
from results_db.gc.item import Item

__all__ = ["Item", "find_garbage", "moved_marker"]
