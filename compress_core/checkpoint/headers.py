"""Read and check the header of a safetensors file, without torch and without reading its data.

The format: 8 bytes little-endian header length N, N bytes of JSON (``name -> {dtype, shape, data_offsets}``, padded
with spaces), then the data, without holes. https://github.com/huggingface/safetensors (README, "Format").
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress_core.errors import CheckpointError
from compress_core.regular import open_regular

#: bytes an element
DTYPE_BYTES: dict[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
#: dtypes that hold weights as they were trained
FLOAT_DTYPES = ("BF16", "F16", "F32", "F64")
#: the limit of the reference implementation
MAX_HEADER_BYTES = 100_000_000
#: a dimension or an offset is less than this; products of numbers of thousands of digits take hours
_TOO_LARGE = 1 << 63
_MOST_DIMENSIONS = 32
#: characters of a file's own texts that an error repeats
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Where one tensor lies and what it is."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    #: offset of the first byte in the file
    begin: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class FileHeader:
    """Everything that a safetensors header says."""

    path: Path
    tensors: dict[str, TensorHeader]
    metadata: dict[str, str]
    #: bytes of the JSON with its padding, without the 8 bytes of its length
    header_bytes: int


def read_header(path: Path) -> FileHeader:
    """Parse and verify a header against the file's true size.

    Raises:
        CheckpointError: the file is missing, truncated, longer than promised, or its header is not valid.
    """
    try:
        with open_regular(path) as stream:
            prefix = stream.read(8)
            file_bytes = os.fstat(stream.fileno()).st_size
            if len(prefix) < 8:
                raise CheckpointError(f"{path} is truncated: {file_bytes} bytes cannot hold a safetensors header")
            n_header = int.from_bytes(prefix, "little")
            if n_header > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{path} is no safetensors file: its first 8 bytes promise a header of {n_header} bytes "
                    f"(at most {MAX_HEADER_BYTES} are allowed)"
                )
            if 8 + n_header > file_bytes:
                raise CheckpointError(
                    f"{path} is truncated: its header alone takes {8 + n_header} bytes, the file has {file_bytes}; "
                    "copy or download it again"
                )
            raw = stream.read(n_header)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    entries = _parse_json(path, raw)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ in the header must map strings to strings")
    tensors = {name: _parse_entry(path, name, entry, 8 + n_header) for name, entry in entries.items()}
    _check_contiguous(path, tensors, 8 + n_header, file_bytes)
    return FileHeader(path, tensors, metadata, n_header)


def _parse_json(path: Path, raw: bytes) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            raise CheckpointError(f"{path}: the header names a key twice")
        return out

    if not raw.startswith(b"{"):
        raise CheckpointError(f"{path} is no safetensors file: its header does not begin with '{{'")
    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not valid JSON ({error}); the file is corrupt") from error
    return dict(entries)


def _parse_entry(path: Path, name: str, entry: Any, data_begin: int) -> TensorHeader:
    shown = name[:_SHOWN]
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the header entry of {shown!r} is malformed") from error
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise CheckpointError(f"{path}: tensor {shown!r} has the unknown dtype {str(dtype)[:_SHOWN]!r}")
    if len(shape) > _MOST_DIMENSIONS:
        raise CheckpointError(f"{path}: tensor {shown!r} has more than {_MOST_DIMENSIONS} dimensions")
    if not all(type(number) is int and 0 <= number < _TOO_LARGE for number in (*shape, begin, end)):
        raise CheckpointError(f"{path}: shape and offsets of {shown!r} must be non-negative integers below 2**63")
    nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != nbytes:
        raise CheckpointError(
            f"{path}: tensor {shown!r} of shape {list(shape)} and dtype {dtype} takes {nbytes} bytes, "
            f"its offsets span {end - begin}"
        )
    return TensorHeader(name, dtype, shape, path, data_begin + begin, nbytes)


def _check_contiguous(path: Path, tensors: dict[str, TensorHeader], data_begin: int, file_bytes: int) -> None:
    position = data_begin
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.begin, tensor.nbytes)):
        if tensor.begin != position:
            raise CheckpointError(
                f"{path}: tensor {tensor.name[:_SHOWN]!r} begins at byte {tensor.begin}, not at {position} where "
                "the one before it ends; the file is corrupt"
            )
        position += tensor.nbytes
    if position > file_bytes:
        raise CheckpointError(
            f"{path} is truncated: its header promises {position} bytes, the file has {file_bytes}; "
            "copy or download it again"
        )
    if position < file_bytes:
        raise CheckpointError(f"{path} is corrupt: its header promises {position} bytes, the file has {file_bytes}")
