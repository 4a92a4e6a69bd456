"""Checkpoints that can be compressed."""
