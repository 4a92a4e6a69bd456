"""Errors and bytes of (matrix, config)."""
