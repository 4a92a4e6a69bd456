"""Read-only SQL straight on the database: nothing that a query says can change anything."""

from __future__ import annotations
