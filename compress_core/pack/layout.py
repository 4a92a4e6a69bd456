"""How many bytes a packed model takes besides its compressed matrices: known before anything is compressed.

The file is one safetensors file. Its header is padded with spaces (the format allows that) to a size that depends
only on the model's structure, so that bytes on disk = :func:`fixed_bytes` + the sum of the matrices' nbytes, exactly.
"""

from __future__ import annotations

import json

from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.checkpoint.headers import TensorHeader

#: room in the header for one matrix: its tensors' entries and its metadata (measured: below 1,100 bytes)
MATRIX_HEADER_BYTES = 1536
#: room for format name, version, and fingerprint
BASE_HEADER_BYTES = 1024
#: digits of the largest offset that the header has room for: 10^15 bytes
_OFFSET_DIGITS = 15


def header_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the padded header, without the 8 bytes that hold its length; a multiple of 8."""
    others = sum(_entry_bytes(tensor) for tensor in checkpoint.other_tensors)
    total = BASE_HEADER_BYTES + others + MATRIX_HEADER_BYTES * len(checkpoint.matrices())
    return -(-total // 8) * 8


def fixed_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of a packed model that no choice of configs changes: uncompressed tensors, header, header length."""
    return 8 + header_bytes(checkpoint) + checkpoint.other_bytes


def _entry_bytes(tensor: TensorHeader) -> int:
    widest = 10**_OFFSET_DIGITS - 1
    entry = {tensor.name: {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [widest, widest]}}
    return len(json.dumps(entry, separators=(",", ":")).encode())
