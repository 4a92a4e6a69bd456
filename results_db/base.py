"""Declarative base shared by every table."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, MetaData
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from results_db.clock import UtcDateTime, utc_now

#: JSON on SQLite, JSONB on PostgreSQL; Python None is SQL NULL
Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class Base(DeclarativeBase):
    """Root of the tables; constraint names are deterministic so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: Json, list[Any]: Json, datetime: UtcDateTime}  # noqa: RUF012

    def as_dict(self) -> dict[str, Any]:
        """The row's columns by name: what the API shows of it."""
        return {column.key: getattr(self, column.key) for column in self.__mapper__.column_attrs}


class CreatedAt:
    """Adds ``created_at``, the time of birth."""

    created_at: Mapped[datetime] = mapped_column(default=utc_now, sort_order=900)
