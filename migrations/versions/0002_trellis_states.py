"""Measurements and fits say how many states their trellis has.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision: str | None = "0001"
branch_labels = None
depends_on = None

#: JSON on SQLite, JSONB on PostgreSQL
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("measurements", sa.Column("states", sa.Integer(), nullable=True))
    op.add_column("fits", sa.Column("states", sa.Integer(), nullable=True))
    # what was measured before has them in its config
    rows = sa.table("measurements", sa.column("config", JSON), sa.column("codebook"), sa.column("states"))
    op.execute(rows.update().where(rows.c.codebook == "trellis").values(states=rows.c.config["states"].as_integer()))


def downgrade() -> None:
    op.drop_column("fits", "states")
    op.drop_column("measurements", "states")
