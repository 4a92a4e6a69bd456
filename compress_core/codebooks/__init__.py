"""Codebooks: how a few weights become a few bits. One interface, one file a method."""

from __future__ import annotations

from functools import lru_cache

import torch

from compress_core.codebooks.base import Codebook
from compress_core.codebooks.e8 import E8Codebook
from compress_core.codebooks.scalar import ScalarCodebook
from compress_core.codebooks.trellis import TrellisCodebook

__all__ = ["Codebook", "E8Codebook", "ScalarCodebook", "TrellisCodebook", "codebook_for", "get_codebook"]

#: a trellis tile of fewer rows is too short to be better than single weights
TRELLIS_ROWS = 16


def codebook_for(rows: int, name: str, bits: int, device: torch.device, states: int = 4096) -> Codebook:
    """The codebook that a matrix of so many rows gets: the scalar one instead of the trellis below 16 rows."""
    return get_codebook("scalar" if name == "trellis" and rows < TRELLIS_ROWS else name, bits, device, states)


@lru_cache(maxsize=64)
def get_codebook(name: str, bits: int, device: torch.device, states: int = 4096) -> Codebook:
    """The codebook of this name and bits, with its tables on ``device``; ``states`` counts for the trellis alone.

    Raises:
        ValueError: no such codebook, or not at these bits or states.
    """
    if name == "scalar":
        return ScalarCodebook(bits, device)
    if name == "e8":
        return E8Codebook(bits, device)
    if name == "trellis":
        return TrellisCodebook(bits, device, states)
    raise ValueError(f"no codebook {name!r}: choose 'scalar', 'e8' or 'trellis'")
