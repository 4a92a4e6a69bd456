"""Packed models made from allocations."""
