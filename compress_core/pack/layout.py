"""How many bytes a packed model takes besides its compressed matrices: known before anything is compressed.

Each file of a packed model has a header that is padded with spaces (the format allows that) to a size that depends
only on the model's structure, so that bytes on disk = :func:`fixed_bytes` + the sum of the matrices' nbytes, exactly.
The room in a header is what the longest possible entries would take. Torch-free.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from compress_core.checkpoint.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from compress_core.config import CODEBOOK_BITS, CompressionConfig
from compress_core.errors import PackedFormatError
from compress_core.matrix import MatrixSpec
from compress_core.nbytes import predicted_nbytes
from compress_core.pack.description import PACKED_SUFFIX
from compress_core.pack.shards import SHARD_BYTES, Shard, head_spec, plan_shards

#: the name that transformers looks for; config.json says that the weights are packed
FILE_NAME = SINGLE_FILE
#: a matrix never takes more bytes a weight than this; bounds the digits of sizes and offsets
_MOST_BYTES_A_WEIGHT = 8
#: room for version, fingerprint, layers' prefix and the header's own punctuation; checked when the header is written
_BASE_HEADER_BYTES = 512


def module_name(spec: MatrixSpec) -> str:
    """What a matrix's tensor and its description are called."""
    return spec.name


def header_bytes(shard: Shard) -> int:
    """Bytes of a file's padded header, without the 8 bytes that hold its length; a multiple of 8."""
    n_weights = sum(spec.n_weights for spec in shard.specs)
    widest = 10 ** len(str(shard.other_bytes + _MOST_BYTES_A_WEIGHT * n_weights)) - 1
    total = _BASE_HEADER_BYTES
    for tensor in shard.others:
        total += _entry_bytes(tensor.name, tensor.dtype, list(tensor.shape), widest)
    for spec in shard.specs:
        most = _MOST_BYTES_A_WEIGHT * spec.n_weights
        total += _entry_bytes(module_name(spec) + PACKED_SUFFIX, "U8", [most], widest)
        total += _longest_description_bytes(spec, len(shard.specs))
    return -(-total // 8) * 8


def fixed_bytes(
    checkpoint: Checkpoint, *, head: CompressionConfig | None = None, shard_bytes: int = SHARD_BYTES
) -> int:
    """Bytes of a packed model that no choice of the matrices' configs changes.

    These are tensors that stay as they are, headers and headers' lengths, and the head where it is compressed.

    Raises:
        ConfigError: a head that is the token embedding is to be compressed.
        RankTooLarge: the head cannot have this rank.
    """
    shards = plan_shards(checkpoint, shard_bytes, head=head is not None)
    total = sum(8 + header_bytes(shard) + shard.other_bytes for shard in shards)
    if head is None:
        return total
    spec = head_spec(checkpoint)
    return total + predicted_nbytes(head, spec.out_features, spec.in_features)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a packed model's tensors: ``model.safetensors``, or what the index names; [] without either.

    Raises:
        PackedFormatError: the index is not readable.
    """
    if (folder / FILE_NAME).exists():
        return [folder / FILE_NAME]
    if not (folder / INDEX_FILE).exists():
        return []
    try:
        weight_map = json.loads((folder / INDEX_FILE).read_text("utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("it names no files beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PackedFormatError(f"{folder / INDEX_FILE} is damaged ({error!r})") from error
    return [folder / name for name in names]


def stored_bytes(folder: Path) -> int | None:
    """Bytes of all files with tensors; None where one of them is missing."""
    files = weight_files(folder)
    if not files or not all(file.exists() for file in files):
        return None
    return sum(file.stat().st_size for file in files)


def _entry_bytes(name: str, dtype: str, shape: list[int], widest: int) -> int:
    entry = {name: {"dtype": dtype, "shape": shape, "data_offsets": [widest, widest]}}
    return len(json.dumps(entry, separators=(",", ":")).encode())


def _longest_description_bytes(spec: MatrixSpec, n_matrices: int) -> int:
    """What a matrix adds to the description if no other matrix shares its config."""
    rows = [] if spec.rows is None else [spec.rows[0]]
    entry = {module_name(spec): [n_matrices, spec.out_features, spec.in_features, *rows]}
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
