"""Bytes of a compressed matrix, from config and shape alone. No torch: the allocator and the server use it.

The rule follows the packed tensors of CompressedMatrix one by one; a test compares the two for every codebook and
many shapes. There is no data-dependent byte.
"""

from __future__ import annotations

from compress_core.config import BASELINE_CODEBOOKS, CompressionConfig

FLOAT32_BYTES = 4
FLOAT16_BYTES = 2
#: weights that one E8 code covers; columns beyond the last full block use the scalar codebook at the same bits
E8_BLOCK = 8


def _packed(count: int, bits: int) -> int:
    return (count * bits + 7) // 8


def _factor_nbytes(rows: int, columns: int, components: int, bits: int) -> int:
    if bits == 16:
        return rows * columns * FLOAT16_BYTES
    return _packed(rows * columns, bits) + components * FLOAT16_BYTES


def predicted_nbytes(config: CompressionConfig, out_features: int, in_features: int) -> int:
    """Exactly the bytes that ``compress_matrix(weight, …, config).nbytes`` will have.

    Raises:
        RankTooLarge: the rank exceeds min(out_features, in_features).
    """
    config.check_shape(out_features, in_features)
    if config.codebook in BASELINE_CODEBOOKS:
        return _packed(out_features * in_features, config.b_q) + out_features * FLOAT16_BYTES
    total = FLOAT32_BYTES + out_features  # scale of the matrix, one byte a row
    if config.codebook == "e8":
        blocks, tail = divmod(in_features, E8_BLOCK)
        total += out_features * blocks * config.b_q  # 8 weights · b_q bits = b_q bytes
        total += _packed(out_features * tail, config.b_q)
    else:
        total += _packed(out_features * in_features, config.b_q)
    if config.rank:
        total += _factor_nbytes(out_features, config.rank, config.rank, config.factor_bits_l)
        total += _factor_nbytes(config.rank, in_features, config.rank, config.factor_bits_r)
    return total
