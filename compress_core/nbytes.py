"""The packed tensors of a compressed matrix, and so its bytes, from config and shape alone.

No torch: the allocator and the server use it. There is no data-dependent byte. docs/format.md describes each tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from compress_core.config import BASELINE_CODEBOOKS, RAW_CODEBOOK, CompressionConfig

#: weights that one E8 code covers; columns beyond the last full block use the scalar codebook at the same bits
E8_BLOCK = 8
#: bytes an element, by safetensors' names
_DTYPE_BYTES = {"F32": 4, "F16": 2, "U16": 2, "U8": 1}


@dataclass(frozen=True, slots=True)
class Part:
    """One packed tensor of a matrix."""

    name: str
    #: as safetensors calls it: F32, F16, U16 or U8
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _DTYPE_BYTES[self.dtype]


@lru_cache(maxsize=4096)
def packed_parts(config: CompressionConfig, out_features: int, in_features: int) -> tuple[Part, ...]:
    """The packed tensors in the order of the file: wide elements first, so that each part is aligned.

    Raises:
        RankTooLarge: the rank exceeds min(out_features, in_features).
    """
    config.check_shape(out_features, in_features)
    if config.codebook == RAW_CODEBOOK:
        return Part("q_values", "U16", (out_features, in_features)), Part("q_type", "U8", (1,))
    baseline = config.codebook in BASELINE_CODEBOOKS
    wide = [Part("q_scale", "F16", (out_features,)) if baseline else Part("q_scale", "F32", (1,))]
    codes = [] if baseline else [Part("q_rows", "U8", (out_features,))]
    if config.codebook == "e8":
        blocks, tail = divmod(in_features, E8_BLOCK)
        codes.append(Part("q_codes", "U8", (2 * out_features * blocks,)))
        if config.b_q > 2:  # the second stage has the bits that 2 a weight leave
            codes.append(Part("q_residual", "U8", ((config.b_q - 2) * out_features * blocks,)))
        if tail:
            codes.append(_codes("q_tail", out_features * tail, config.b_q))
    else:
        codes.append(_codes("q_codes", out_features * in_features, config.b_q))
    if config.rank:
        sides = (
            ("l", (out_features, config.rank), config.factor_bits_l),
            ("r", (config.rank, in_features), config.factor_bits_r),
        )
        for side, shape, bits in sides:
            if bits == 16:
                wide.append(Part(f"{side}_values", "F16", shape))
            else:
                wide.append(Part(f"{side}_scales", "F16", (config.rank,)))
                codes.append(_codes(f"{side}_codes", math.prod(shape), bits))
    return (*wide, *codes)


def predicted_nbytes(config: CompressionConfig, out_features: int, in_features: int) -> int:
    """Exactly the bytes that ``compress_matrix(weight, …, config).nbytes`` will have.

    Raises:
        RankTooLarge: the rank exceeds min(out_features, in_features).
    """
    return sum(part.nbytes for part in packed_parts(config, out_features, in_features))


def _codes(name: str, count: int, bits: int) -> Part:
    return Part(name, "U8", ((count * bits + 7) // 8,))
