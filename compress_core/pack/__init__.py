"""Packed models on disk: written layer by layer, read back bit-exactly. ``layout`` is torch-free."""
