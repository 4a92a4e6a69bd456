"""Read single tensors of a checkpoint, when they are needed."""

from __future__ import annotations

import torch
from torch import Tensor

from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.checkpoint.finite import count_non_finite, refuse_non_finite
from compress_core.checkpoint.headers import TensorHeader
from compress_core.errors import CheckpointError
from compress_core.matrix import MatrixSpec

TORCH_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}
SAFETENSORS_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def read_tensor(header: TensorHeader) -> Tensor:
    """The tensor in its stored dtype, on the CPU; reads its bytes alone.

    Raises:
        CheckpointError: the file became shorter since its header was checked.
    """
    return _as_tensor(header, _read_bytes(header))


def read_finite(header: TensorHeader) -> Tensor:
    """Like :func:`read_tensor`, and sure that there is neither NaN nor infinity in it.

    Raises:
        NonFiniteValues: names tensor, file, and how many values are affected.
    """
    data = _read_bytes(header)
    refuse_non_finite(header, count_non_finite(data, header.dtype))
    return _as_tensor(header, data)


def _read_bytes(header: TensorHeader) -> bytearray:
    data = bytearray(header.nbytes)
    with header.file.open("rb") as stream:
        stream.seek(header.begin)
        if stream.readinto(data) != header.nbytes:
            raise CheckpointError(f"{header.file} became shorter since it was opened; copy or download it again")
    return data


def _as_tensor(header: TensorHeader, data: bytearray) -> Tensor:
    if not data:
        return torch.empty(header.shape, dtype=TORCH_DTYPES[header.dtype])
    return torch.frombuffer(data, dtype=TORCH_DTYPES[header.dtype]).reshape(header.shape)


def read_matrix(checkpoint: Checkpoint, spec: MatrixSpec) -> Tensor:
    """A matrix (out_features, in_features) in its stored dtype, on the CPU, sure to be finite; its rows alone are read.

    Raises:
        NonFiniteValues, CheckpointError: as :func:`read_finite`.
    """
    whole = checkpoint.tensors[spec.tensor_name]
    if spec.rows is None:
        return read_finite(whole)
    first, end = spec.rows
    row_bytes = whole.nbytes // whole.shape[0]
    shape = (end - first, *whole.shape[1:])
    return read_finite(
        TensorHeader(
            whole.name, whole.dtype, shape, whole.file, whole.begin + first * row_bytes, (end - first) * row_bytes
        )
    )


class DenseWeights:
    """The weights of a checkpoint as a source for the stream runner (see ``compress_core.stream``)."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path = checkpoint.path
        self.layers_prefix = checkpoint.layout.prefix
        self.n_layers = checkpoint.n_layers
        self.tied_head = checkpoint.tied_head
        self._tensors = checkpoint.tensors

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def tensor(self, name: str) -> Tensor:
        """A weight as stored, verified to be finite."""
        return read_finite(self._tensors[name])
