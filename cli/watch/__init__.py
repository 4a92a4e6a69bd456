"""Follow a job or a study until it ends, with live progress."""

from __future__ import annotations
