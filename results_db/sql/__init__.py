"""SQL as a contract: what the views mean, queries that change nothing, and queries worth asking."""

from __future__ import annotations
