"""Perplexity, KL, and the intervals that say whether a difference is real (``interval`` is torch-free)."""
