"""Metrics of models, and paired comparisons between two."""
