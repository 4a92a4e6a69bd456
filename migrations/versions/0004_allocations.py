"""Sensitivities with their estimates, fits that were compared, allocations with prices, and validations.

Two tables are renamed because views take their names: ``sensitivities`` is now ``sensitivity_anchors`` and
``allocation_items`` is ``allocation_choices``. They are made anew and their rows carried over, so that constraints bear
the table's name on every database.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision: str | None = "0003"
branch_labels = None
depends_on = None

#: JSON on SQLite, JSONB on PostgreSQL
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

_ANCHORS, _OLD_ANCHORS = "sensitivity_anchors", "sensitivities"
_CHOICES, _OLD_CHOICES = "allocation_choices", "allocation_items"


def upgrade() -> None:
    anchors = _create_anchors(_ANCHORS, sa.Column("kl_per_sequence", JSON, nullable=True))
    _carry(_OLD_ANCHORS, anchors)
    choices = _create_choices(_CHOICES, sa.Column("regret", sa.Double(), nullable=True))
    _carry(_OLD_CHOICES, choices)
    op.add_column("measurements", sa.Column("residual_spectrum", JSON, nullable=True))
    op.create_index("ix_measurements_calibration_id_id", "measurements", ["calibration_id", "id"])
    op.add_column("fits", sa.Column("factor_bits_l", sa.Integer(), nullable=True))
    op.add_column("fits", sa.Column("factor_bits_r", sa.Integer(), nullable=True))
    op.add_column("fits", sa.Column("cv_layer_error", sa.Double(), nullable=True))
    op.add_column("fits", sa.Column("cv", JSON, server_default="{}", nullable=False))
    # every fit so far was made alone
    op.add_column("fits", sa.Column("chosen", sa.Boolean(), server_default=sa.true(), nullable=False))
    op.add_column("fits", sa.Column("group_id", sa.String(), nullable=True))
    op.add_column("fits", sa.Column("details", JSON, server_default="{}", nullable=False))
    op.add_column("fit_parameters", sa.Column("low", sa.Double(), nullable=True))
    op.add_column("fit_parameters", sa.Column("high", sa.Double(), nullable=True))
    op.add_column("allocations", sa.Column("predicted_kl", sa.Double(), nullable=True))
    op.add_column("allocations", sa.Column("constraints", JSON, nullable=True))
    op.add_column("allocations", sa.Column("seed", sa.Integer(), nullable=True))
    _create_estimates()
    _create_fidelities()
    _create_validations()


def downgrade() -> None:
    op.drop_index("ix_measurements_calibration_id_id", table_name="measurements")
    op.drop_table("validation_windows")
    op.drop_table("validation_items")
    op.drop_table("validations")
    op.drop_table("layer_fidelities")
    op.drop_table("sensitivity_estimates")
    for table, columns in (
        ("allocations", ("seed", "constraints", "predicted_kl")),
        ("fit_parameters", ("high", "low")),
        (
            "fits",
            ("details", "group_id", "chosen", "cv", "cv_layer_error", "factor_bits_r", "factor_bits_l"),
        ),
        ("measurements", ("residual_spectrum",)),
    ):
        for column in columns:
            op.drop_column(table, column)
    _carry(_CHOICES, _create_choices(_OLD_CHOICES))
    _carry(_ANCHORS, _create_anchors(_OLD_ANCHORS))


def _carry(source: str, target: sa.Table) -> None:
    """Copy the rows of the columns that both tables have, then drop the source."""
    connection = op.get_bind()
    had = {column["name"] for column in sa.inspect(connection).get_columns(source)}
    names = [column.name for column in target.columns if column.name in had]
    rows = sa.select(*(sa.column(name) for name in names)).select_from(sa.table(source)).order_by(sa.column("id"))
    connection.execute(target.insert().from_select(names, rows))
    op.drop_table(source)
    if connection.dialect.name == "postgresql":
        # the sequence of the new table has not seen the ids that came along
        largest = connection.scalar(sa.select(sa.func.max(target.c.id)))
        if largest is not None:
            sequence = sa.func.pg_get_serial_sequence(target.name, "id")
            connection.execute(sa.select(sa.func.setval(sequence, largest)))


def _key(table: str, column: str, target: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{target}.id"], name=op.f(f"fk_{table}_{column}_{target}"))


def _matrix(columns: Sequence[str] = ("layer_idx", "projection", "expert_idx")) -> list[sa.Column[object]]:
    return [sa.Column(name, sa.String() if name == "projection" else sa.Integer(), nullable=False) for name in columns]


def _create_anchors(name: str, *added: sa.Column[object]) -> sa.Table:
    return op.create_table(
        name,
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("calibration_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("attempt_id", sa.String(), nullable=False),
        sa.Column("method", sa.String(), nullable=False),
        *_matrix(),
        sa.Column("anchor_config_hash", sa.String(), nullable=False),
        sa.Column("anchor_config", JSON, nullable=False),
        sa.Column("anchor_error", sa.Double(), nullable=False),
        sa.Column("kl", sa.Double(), nullable=False),
        sa.Column("kl_se", sa.Double(), nullable=False),
        sa.Column("sensitivity", sa.Double(), nullable=False),
        sa.Column("n_sequences", sa.Integer(), nullable=False),
        sa.Column("n_tokens", sa.BigInteger(), nullable=False),
        sa.Column("token_hash", sa.String(), nullable=False),
        sa.Column("text", JSON, nullable=False),
        sa.Column("numerics_version", sa.Integer(), nullable=False),
        sa.Column("device_kind", sa.String(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        *added,
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        _key(name, "attempt_id", "attempts"),
        _key(name, "calibration_id", "calibrations"),
        _key(name, "job_id", "jobs"),
        _key(name, "model_id", "models"),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{name}")),
        sa.UniqueConstraint(
            "model_id",
            "layer_idx",
            "projection",
            "expert_idx",
            "method",
            "anchor_config_hash",
            "calibration_id",
            "token_hash",
            "numerics_version",
            "device_kind",
            name=f"uq_{name}_key",
        ),
    )


def _create_choices(name: str, *added: sa.Column[object]) -> sa.Table:
    return op.create_table(
        name,
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("allocation_id", sa.String(), nullable=False),
        *_matrix(),
        sa.Column("config_hash", sa.String(), nullable=False),
        sa.Column("config", JSON, nullable=False),
        sa.Column("b_q", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("requested_rank", sa.Integer(), nullable=True),
        sa.Column("nbytes", sa.BigInteger(), nullable=False),
        sa.Column("error", sa.Double(), nullable=True),
        sa.Column("sensitivity", sa.Double(), nullable=True),
        *added,
        _key(name, "allocation_id", "allocations"),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{name}")),
        sa.UniqueConstraint(
            "allocation_id",
            "layer_idx",
            "projection",
            "expert_idx",
            name=op.f(f"uq_{name}_allocation_id_layer_idx_projection_expert_idx"),
        ),
    )


def _create_estimates() -> None:
    name = "sensitivity_estimates"
    op.create_table(
        name,
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("calibration_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("method", sa.String(), nullable=False),
        sa.Column("metric", sa.String(), nullable=False),
        sa.Column("incumbent_hash", sa.String(), nullable=False),
        sa.Column("applies_to", sa.String(), nullable=False),
        sa.Column("token_hash", sa.String(), nullable=False),
        *_matrix(),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("log_se", sa.Double(), nullable=False),
        sa.Column("low", sa.Double(), nullable=False),
        sa.Column("high", sa.Double(), nullable=False),
        sa.Column("raw", sa.Double(), nullable=True),
        sa.Column("raw_log_se", sa.Double(), nullable=True),
        sa.Column("own_weight", sa.Double(), nullable=False),
        sa.Column("n_anchors", sa.Integer(), nullable=False),
        sa.Column("n_floored", sa.Integer(), nullable=False),
        sa.Column("numerics_version", sa.Integer(), nullable=False),
        sa.Column("device_kind", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        _key(name, "calibration_id", "calibrations"),
        _key(name, "job_id", "jobs"),
        _key(name, "model_id", "models"),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{name}")),
        sa.UniqueConstraint(
            "model_id",
            "layer_idx",
            "projection",
            "expert_idx",
            "method",
            "metric",
            "incumbent_hash",
            "applies_to",
            "calibration_id",
            "token_hash",
            "numerics_version",
            "device_kind",
            name=f"uq_{name}_key",
        ),
    )


def _create_fidelities() -> None:
    name = "layer_fidelities"
    op.create_table(
        name,
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("calibration_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("attempt_id", sa.String(), nullable=False),
        sa.Column("layer_idx", sa.Integer(), nullable=False),
        sa.Column("config_hash", sa.String(), nullable=False),
        sa.Column("config", JSON, nullable=False),
        sa.Column("cosine", sa.Double(), nullable=False),
        sa.Column("cosine_se", sa.Double(), nullable=True),
        sa.Column("relative_error", sa.Double(), nullable=False),
        sa.Column("relative_error_se", sa.Double(), nullable=True),
        sa.Column("n_sequences", sa.Integer(), nullable=False),
        sa.Column("token_hash", sa.String(), nullable=False),
        sa.Column("text", JSON, nullable=False),
        sa.Column("numerics_version", sa.Integer(), nullable=False),
        sa.Column("device_kind", sa.String(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        _key(name, "attempt_id", "attempts"),
        _key(name, "calibration_id", "calibrations"),
        _key(name, "job_id", "jobs"),
        _key(name, "model_id", "models"),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{name}")),
        sa.UniqueConstraint(
            "model_id",
            "layer_idx",
            "config_hash",
            "calibration_id",
            "token_hash",
            "numerics_version",
            "device_kind",
            name=f"uq_{name}_key",
        ),
    )


def _create_validations() -> None:
    op.create_table(
        "validations",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("calibration_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("study_id", sa.String(), nullable=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("dataset", sa.String(), nullable=False),
        sa.Column("split", sa.String(), nullable=False),
        sa.Column("token_hash", sa.String(), nullable=False),
        sa.Column("n_windows", sa.Integer(), nullable=False),
        sa.Column("n_tokens", sa.BigInteger(), nullable=False),
        sa.Column("text", JSON, nullable=False),
        sa.Column("n_allocations", sa.Integer(), nullable=False),
        sa.Column("spearman", sa.Double(), nullable=True),
        sa.Column("spearman_low", sa.Double(), nullable=True),
        sa.Column("spearman_high", sa.Double(), nullable=True),
        sa.Column("log_slope", sa.Double(), nullable=True),
        sa.Column("log_slope_low", sa.Double(), nullable=True),
        sa.Column("log_slope_high", sa.Double(), nullable=True),
        sa.Column("kappa", sa.Double(), nullable=True),
        sa.Column("residual_sd", sa.Double(), nullable=True),
        sa.Column("calibrated", sa.Boolean(), nullable=True),
        sa.Column("winner_allocation_id", sa.String(), nullable=True),
        sa.Column("details", JSON, nullable=False),
        sa.Column("numerics_version", sa.Integer(), nullable=False),
        sa.Column("device_kind", sa.String(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        _key("validations", "calibration_id", "calibrations"),
        _key("validations", "job_id", "jobs"),
        _key("validations", "model_id", "models"),
        _key("validations", "study_id", "studies"),
        _key("validations", "winner_allocation_id", "allocations"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_validations")),
        sa.UniqueConstraint("job_id", name=op.f("uq_validations_job_id")),
    )
    op.create_table(
        "validation_items",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("validation_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("allocation_id", sa.String(), nullable=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("matrix_bytes", sa.BigInteger(), nullable=False),
        sa.Column("predicted_kl", sa.Double(), nullable=True),
        sa.Column("kl", sa.Double(), nullable=False),
        sa.Column("kl_se", sa.Double(), nullable=False),
        sa.Column("nll", sa.Double(), nullable=False),
        sa.Column("ppl", sa.Double(), nullable=False),
        _key("validation_items", "allocation_id", "allocations"),
        _key("validation_items", "validation_id", "validations"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_validation_items")),
        sa.UniqueConstraint("validation_id", "position", name=op.f("uq_validation_items_validation_id_position")),
    )
    op.create_table(
        "validation_windows",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("validation_item_id", sa.Integer(), nullable=False),
        sa.Column("item_idx", sa.Integer(), nullable=False),
        sa.Column("kl", sa.Double(), nullable=False),
        sa.Column("nll", sa.Double(), nullable=False),
        sa.Column("n_tokens", sa.Integer(), nullable=False),
        _key("validation_windows", "validation_item_id", "validation_items"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_validation_windows")),
        sa.UniqueConstraint(
            "validation_item_id", "item_idx", name=op.f("uq_validation_windows_validation_item_id_item_idx")
        ),
    )
