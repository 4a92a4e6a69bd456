"""Alembic's entry: runs on the connection that results_db.migrate hands over."""

from __future__ import annotations

from alembic import context

import results_db.tables  # noqa: F401 - completes the metadata
from results_db.base import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
