"""Allocations tried as a whole on held-out text, beside what was predicted of them."""
