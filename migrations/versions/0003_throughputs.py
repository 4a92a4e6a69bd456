"""What a machine was measured to do in a second, and what a calibration keeps.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision: str | None = "0002"
branch_labels = None
depends_on = None

#: JSON on SQLite, JSONB on PostgreSQL
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "throughputs",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("hostname", sa.String(), nullable=False),
        sa.Column("device_kind", sa.String(), nullable=False),
        sa.Column("device_name", sa.String(), nullable=False),
        sa.Column("threads", sa.Integer(), nullable=False),
        sa.Column("rates", JSON, nullable=False),
        sa.Column("numerics_version", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_throughputs_job_id_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_throughputs")),
        sa.UniqueConstraint("job_id", name=op.f("uq_throughputs_job_id")),
    )
    # every calibration so far keeps its Hessians
    op.add_column("calibrations", sa.Column("keeps", sa.String(), server_default="hessians", nullable=False))


def downgrade() -> None:
    op.drop_column("calibrations", "keeps")
    op.drop_table("throughputs")
