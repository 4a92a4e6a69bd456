"""Requests to measure a grid of configs."""
