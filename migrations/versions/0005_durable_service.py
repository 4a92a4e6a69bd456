"""What a durable service needs to remember: retired measurements and what they made stale, waits between retries, who
may call, and what the queue and its workers were told.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision: str | None = "0004"
branch_labels = None
depends_on = None

#: JSON on SQLite, JSONB on PostgreSQL
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

_DERIVED = ("fits", "allocations", "gates")


def upgrade() -> None:
    _create_retired()
    _recreate_measurements(autoincrement=True)
    for table in _DERIVED:
        op.add_column(table, sa.Column("stale_at", sa.DateTime(timezone=True), nullable=True))
        op.add_column(table, sa.Column("stale_reason", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("trace_id", sa.String(), nullable=True))
    op.add_column("attempts", sa.Column("available_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("workers", sa.Column("drain_requested", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_table(
        "queue_controls",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_queue_controls")),
    )
    op.add_column("tokens", sa.Column("hint", sa.String(), nullable=True))
    op.add_column("tokens", sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("tokens", sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "page_sessions",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("token_id", sa.String(), nullable=False),
        sa.Column("secret_hash", sa.String(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["token_id"], ["tokens.id"], name=op.f("fk_page_sessions_token_id_tokens")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_page_sessions")),
        sa.UniqueConstraint("secret_hash", name=op.f("uq_page_sessions_secret_hash")),
    )


def downgrade() -> None:
    op.drop_table("page_sessions")
    for column in ("last_used_at", "expires_at", "hint"):
        op.drop_column("tokens", column)
    op.drop_table("queue_controls")
    op.drop_column("workers", "drain_requested")
    op.drop_column("attempts", "available_at")
    op.drop_column("jobs", "trace_id")
    for table in reversed(_DERIVED):
        op.drop_column(table, "stale_reason")
        op.drop_column(table, "stale_at")
    op.drop_index("ix_retired_measurements_calibration_id_config_hash", table_name="retired_measurements")
    op.drop_table("retired_measurements")
    _recreate_measurements(autoincrement=False)


def _recreate_measurements(*, autoincrement: bool) -> None:
    """SQLite gives the largest id of a table again after a delete, unless it is told not to: an id must never mean two
    measurements. PostgreSQL's sequences do not go back."""
    if op.get_bind().dialect.name == "sqlite":
        kwargs = {"sqlite_autoincrement": autoincrement}
        with op.batch_alter_table("measurements", recreate="always", table_kwargs=kwargs):
            pass  # the copy is the change


def _create_retired() -> None:
    op.create_table(
        "retired_measurements",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("measurement_id", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("replaced_by_sweep_id", sa.String(), nullable=True),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("calibration_id", sa.String(), nullable=False),
        sa.Column("sweep_id", sa.String(), nullable=False),
        sa.Column("attempt_id", sa.String(), nullable=False),
        sa.Column("layer_idx", sa.Integer(), nullable=False),
        sa.Column("projection", sa.String(), nullable=False),
        sa.Column("expert_idx", sa.Integer(), nullable=False),
        sa.Column("out_features", sa.Integer(), nullable=False),
        sa.Column("in_features", sa.Integer(), nullable=False),
        sa.Column("config_hash", sa.String(), nullable=False),
        sa.Column("config", JSON, nullable=False),
        sa.Column("b_q", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("factor_bits_l", sa.Integer(), nullable=False),
        sa.Column("factor_bits_r", sa.Integer(), nullable=False),
        sa.Column("codebook", sa.String(), nullable=False),
        sa.Column("states", sa.Integer(), nullable=True),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("numerics_version", sa.Integer(), nullable=False),
        sa.Column("device_kind", sa.String(), nullable=False),
        sa.Column("raw_mse", sa.Double(), nullable=False),
        sa.Column("normalized_mse", sa.Double(), nullable=False),
        sa.Column("calibration_weighted_error", sa.Double(), nullable=False),
        sa.Column("nbytes", sa.BigInteger(), nullable=False),
        sa.Column("bits_per_weight", sa.Double(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("residual_spectrum", JSON, nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        *(
            sa.ForeignKeyConstraint(
                [column], [target], name=op.f(f"fk_retired_measurements_{column}_{target.partition('.')[0]}")
            )
            for column, target in (
                ("attempt_id", "attempts.id"),
                ("calibration_id", "calibrations.id"),
                ("model_id", "models.id"),
                ("replaced_by_sweep_id", "sweeps.id"),
                ("sweep_id", "sweeps.id"),
            )
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_retired_measurements")),
    )
    op.create_index(
        "ix_retired_measurements_calibration_id_config_hash",
        "retired_measurements",
        ["calibration_id", "config_hash"],
    )
