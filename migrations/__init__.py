"""Alembic migrations of the results database, for SQLite and PostgreSQL."""
