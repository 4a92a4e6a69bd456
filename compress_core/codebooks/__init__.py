"""Codebooks: how a few weights become a few bits. One interface, one file a method."""

from __future__ import annotations

from functools import lru_cache

import torch

from compress_core.codebooks.base import Codebook
from compress_core.codebooks.e8 import E8Codebook
from compress_core.codebooks.scalar import ScalarCodebook

__all__ = ["Codebook", "E8Codebook", "ScalarCodebook", "get_codebook"]


@lru_cache(maxsize=64)
def get_codebook(name: str, bits: int, device: torch.device) -> Codebook:
    """The codebook of this name and bits, with its tables on ``device``.

    Raises:
        ValueError: no such codebook, or not at these bits.
    """
    if name == "scalar":
        return ScalarCodebook(bits, device)
    if name == "e8":
        return E8Codebook(bits, device)
    raise ValueError(f"no codebook {name!r}: choose 'scalar' or 'e8'")
