"""Criteria of the phases, decided from the database."""
