"""What lies around and is of no more use: found first, removed only when asked."""

from __future__ import annotations

from results_db.gc.collect import find_garbage
from results_db.gc.item import Item
from results_db.gc.moved import cure_of_moved, mark_moved, moved_to

__all__ = ["Item", "cure_of_moved", "find_garbage", "mark_moved", "moved_to"]
