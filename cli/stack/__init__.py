"""The embedded stack: Redis, server and worker on one machine, started, watched and stopped together."""

from __future__ import annotations
