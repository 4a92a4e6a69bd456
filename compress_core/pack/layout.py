"""How many bytes a packed model takes besides its compressed matrices: known before anything is compressed.

A packed model is one safetensors file. Its header is padded with spaces (the format allows that) to a size that
depends only on the model's structure, so that bytes on disk = :func:`fixed_bytes` + the sum of the matrices' nbytes,
exactly. The room in the header is what the longest possible entries would take. Torch-free.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache

from compress_core.checkpoint.checkpoint import SINGLE_FILE, Checkpoint
from compress_core.config import CODEBOOK_BITS, CompressionConfig
from compress_core.matrix import MatrixSpec
from compress_core.pack.description import PACKED_SUFFIX

#: the name that transformers looks for; config.json says that the weights are packed
FILE_NAME = SINGLE_FILE
#: a matrix never takes more bytes a weight than this; bounds the digits of sizes and offsets
_MOST_BYTES_A_WEIGHT = 8
#: room for version, fingerprint, layers' prefix and the header's own punctuation; checked when the header is written
_BASE_HEADER_BYTES = 512


def module_name(spec: MatrixSpec) -> str:
    """What a matrix's tensor and its description are called."""
    return spec.name


def header_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the padded header, without the 8 bytes that hold its length; a multiple of 8."""
    n_weights = sum(spec.n_weights for spec in checkpoint.matrices())
    widest = 10 ** len(str(checkpoint.other_bytes + _MOST_BYTES_A_WEIGHT * n_weights)) - 1
    total = _BASE_HEADER_BYTES
    for tensor in checkpoint.other_tensors:
        total += _entry_bytes(tensor.name, tensor.dtype, list(tensor.shape), widest)
    n_matrices = len(checkpoint.matrices())
    for spec in checkpoint.matrices():
        most = _MOST_BYTES_A_WEIGHT * spec.n_weights
        total += _entry_bytes(module_name(spec) + PACKED_SUFFIX, "U8", [most], widest)
        total += _longest_description_bytes(spec, n_matrices)
    return -(-total // 8) * 8


def fixed_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of a packed model that no choice of configs changes: uncompressed tensors, header, header length."""
    return 8 + header_bytes(checkpoint) + checkpoint.other_bytes


def _entry_bytes(name: str, dtype: str, shape: list[int], widest: int) -> int:
    entry = {name: {"dtype": dtype, "shape": shape, "data_offsets": [widest, widest]}}
    return len(json.dumps(entry, separators=(",", ":")).encode())


def _longest_description_bytes(spec: MatrixSpec, n_matrices: int) -> int:
    """What a matrix adds to the description if no other matrix shares its config."""
    entry = {module_name(spec): [n_matrices, spec.out_features, spec.in_features]}
    return _quoted_bytes(entry) + _longest_config_bytes(min(spec.out_features, spec.in_features))


@lru_cache(maxsize=64)
def _longest_config_bytes(rank: int) -> int:
    longest = replace(
        CompressionConfig(b_q=2, codebook="scalar"),
        rank=rank,
        factor_bits=(16, 16),
        seed=2**31 - 1,
        iterations=100,
        states=65536,
    ).to_dict()
    longest["factor_bits"] = [16, 16]
    longest["codebook"] = "x" * max(map(len, CODEBOOK_BITS))
    return _quoted_bytes(longest)


def _quoted_bytes(value: object) -> int:
    """Bytes of a value's JSON inside a JSON string."""
    return len(json.dumps(json.dumps(value, separators=(",", ":"))).encode())
