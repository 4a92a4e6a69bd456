"""The fingerprint of a model: the same weights give the same one, however they are sharded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from compress_core.checkpoint.finite import count_non_finite, refuse_non_finite
from compress_core.checkpoint.headers import TensorHeader
from compress_core.errors import CheckpointError

#: config fields that do not change what the model computes
_INCIDENTAL = ("_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
_CHUNK = 1 << 22


def fingerprint(config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]) -> str:
    """sha256 (64 hex digits) over the config's essential fields and every tensor's name, dtype, shape and bytes.

    Reads every file once, a few MB at a time. Callers that ask often should cache by (path, size, mtime). Since every
    byte passes by, a tensor that is not finite is found here, before anybody computes with it.

    Raises:
        NonFiniteValues: names the tensor, its file, and how many values are NaN or infinite.
        CheckpointError: a file became shorter while it was read.
    """
    essential = {name: value for name, value in config.items() if name not in _INCIDENTAL}
    total = hashlib.sha256(json.dumps(essential, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        line = json.dumps([name, tensor.dtype, list(tensor.shape), _content_hash(tensor)])
        total.update(line.encode())
    return total.hexdigest()


def _content_hash(tensor: TensorHeader) -> str:
    digest = hashlib.sha256()
    left, n_bad = tensor.nbytes, 0
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.begin)
        while left:
            chunk = stream.read(min(_CHUNK, left))
            if not chunk:
                raise CheckpointError(f"{tensor.file} became shorter while it was read")
            digest.update(chunk)
            n_bad += count_non_finite(chunk, tensor.dtype)
            left -= len(chunk)
    refuse_non_finite(tensor, n_bad)
    return digest.hexdigest()
