"""Whole tables as files: JSON lines, CSV, Parquet, streamed."""
