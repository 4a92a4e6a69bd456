"""Measurements of what a worker's device does in a second."""
