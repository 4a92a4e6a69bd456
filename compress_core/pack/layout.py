"""How many bytes a packed model takes besides its compressed matrices: known before anything is compressed.

A packed model is one safetensors file. Its header is padded with spaces (the format allows that) to a size that
depends only on the model's structure, so that bytes on disk = :func:`fixed_bytes` + the sum of the matrices' nbytes,
exactly. The room in the header is what the longest possible entries would take. Torch-free.
"""

from __future__ import annotations

import json
from dataclasses import replace

from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.config import CODEBOOK_BITS, CompressionConfig
from compress_core.matrix import MatrixSpec

FILE_NAME = "packed.safetensors"
FORMAT = "bitbudget-packed"
VERSION = "1"
#: metadata key of the description of the whole file; every other key but "format" names a matrix's module
MODEL_KEY = "model"
#: the most tensors that one matrix is stored as (factors of 16 bits are one tensor a side, not two)
PART_NAMES = (
    "q_codes",
    "q_residual",
    "q_tail",
    "q_scale",
    "q_rows",
    "l_codes",
    "l_scales",
    "r_codes",
    "r_scales",
)
#: a matrix never takes more bytes a weight than this; bounds the digits of offsets
_MOST_BYTES_A_WEIGHT = 8
#: room for format name, version, fingerprint and layers' prefix; checked when the header is written
_BASE_HEADER_BYTES = 512


def module_name(spec: MatrixSpec) -> str:
    """The module whose weight a matrix is: its tensors and its metadata carry this name."""
    return spec.tensor_name.removesuffix(".weight")


def header_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the padded header, without the 8 bytes that hold its length; a multiple of 8."""
    n_weights = sum(spec.n_weights for spec in checkpoint.matrices())
    widest = 10 ** len(str(checkpoint.other_bytes + _MOST_BYTES_A_WEIGHT * n_weights)) - 1
    total = _BASE_HEADER_BYTES
    for tensor in checkpoint.other_tensors:
        total += _entry_bytes(tensor.name, tensor.dtype, list(tensor.shape), widest)
    for spec in checkpoint.matrices():
        most = _MOST_BYTES_A_WEIGHT * spec.n_weights
        total += sum(_entry_bytes(f"{module_name(spec)}.{part}", "F32", [most], widest) for part in PART_NAMES)
        total += _longest_metadata_bytes(spec)
    return -(-total // 8) * 8


def fixed_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of a packed model that no choice of configs changes: uncompressed tensors, header, header length."""
    return 8 + header_bytes(checkpoint) + checkpoint.other_bytes


def _entry_bytes(name: str, dtype: str, shape: list[int], widest: int) -> int:
    entry = {name: {"dtype": dtype, "shape": shape, "data_offsets": [widest, widest]}}
    return len(json.dumps(entry, separators=(",", ":")).encode())


def _longest_metadata_bytes(spec: MatrixSpec) -> int:
    longest = replace(
        CompressionConfig(b_q=2, codebook="scalar"),
        rank=min(spec.out_features, spec.in_features),
        factor_bits=(16, 8),
        seed=2**31 - 1,
        iterations=100,
        states=65536,
    ).to_dict()
    longest["codebook"] = "x" * max(len("trellis"), *map(len, CODEBOOK_BITS))
    meta = {"config": longest, "shape": [spec.out_features, spec.in_features], "rotated": False}
    return len(json.dumps({module_name(spec): json.dumps(meta, separators=(",", ":"))}, separators=(",", ":")).encode())
