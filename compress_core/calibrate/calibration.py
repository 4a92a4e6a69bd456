"""Calibration: the stored H = E[x xᵀ] of every distinct input, and where it came from.

One safetensors file. ``__metadata__["calibration"]`` is JSON (:class:`CalibrationInfo`); tensor ``LAYER.GROUP`` holds
the upper half of the symmetric H, row by row: row i's entries i … n−1, n(n+1)/2 float32 in all.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from compress_core.calibrate.inputs import INPUT_GROUPS, input_name
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.checkpoint.headers import FileHeader, read_header
from compress_core.checkpoint.read import read_finite
from compress_core.checkpoint.writer import Entry
from compress_core.errors import CalibrationError, CheckpointError
from compress_core.matrix import MatrixKey

FORMAT = "bitbudget-calibration"
VERSION = "1"


@dataclass(frozen=True, kw_only=True)
class CalibrationInfo:
    """What a calibration was made from; equal infos on one device kind mean equal Hessians."""

    model_fingerprint: str
    n_layers: int
    #: TextSource.to_dict() and the split, as the caller names them
    source: str
    samples: int
    length: int
    n_tokens: int
    seed: int
    #: hash of the exact token ids
    token_sha256: str
    #: dtype of the activations; H is always summed in float64
    dtype: str
    device_kind: str
    numerics_version: int
    torch_version: str

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def tensor_name(layer_idx: int, group: str) -> str:
    return f"{layer_idx}.{group}"


def half_size(n: int) -> int:
    """Entries of the upper half of an n × n matrix, with the diagonal."""
    return n * (n + 1) // 2


def calibration_entries(checkpoint: Checkpoint) -> list[Entry]:
    """Name, dtype and shape of every tensor in a calibration file of this model, in order."""
    entries = []
    for layer_idx in range(checkpoint.n_layers):
        for group, projections in INPUT_GROUPS.items():
            width = checkpoint.matrix(MatrixKey(layer_idx, projections[0])).in_features
            entries.append(Entry(tensor_name(layer_idx, group), "F32", (half_size(width),)))
    return entries


def pack_half(hessian_II: Tensor) -> Tensor:
    """The upper half of a symmetric matrix, row by row."""
    n = hessian_II.shape[0]
    return torch.cat([hessian_II[row, row:] for row in range(n)])


def unpack_half(half: Tensor, n: int) -> Tensor:
    """The symmetric (n, n) matrix; inverse of :func:`pack_half`."""
    out = torch.empty((n, n), dtype=half.dtype)
    begin = 0
    for row in range(n):
        end = begin + n - row
        out[row, row:] = half[begin:end]
        out[row:, row] = half[begin:end]
        begin = end
    return out


class Calibration:
    """A calibration file that fits a checkpoint; an H is read when it is asked for."""

    def __init__(self, path: Path, info: CalibrationInfo, header: FileHeader) -> None:
        self.path = path
        self.info = info
        self._header = header

    @classmethod
    def open(cls, path: Path | str, checkpoint: Checkpoint) -> Calibration:
        """Open a file and verify it against the checkpoint it is used with.

        Raises:
            CalibrationError: no such file, another format, or made from a model of other shapes or weights.
        """
        path = Path(path)
        try:
            header = read_header(path)
        except CheckpointError as error:
            raise CalibrationError(f"calibration unusable: {error}") from error
        if header.metadata.get("format") != FORMAT or header.metadata.get("version") != VERSION:
            raise CalibrationError(f"{path} is no calibration file of version {VERSION}: run calibrate again")
        try:
            values = json.loads(header.metadata["calibration"])
            info = CalibrationInfo(**{field.name: values[field.name] for field in fields(CalibrationInfo)})
        except (KeyError, ValueError, TypeError) as error:
            raise CalibrationError(f"{path}: its description of the calibration is damaged") from error
        for entry in calibration_entries(checkpoint):
            found = header.tensors.get(entry.name)
            if found is None or found.shape != entry.shape or found.dtype != entry.dtype:
                have = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
                raise CalibrationError(
                    f"{path} does not fit {checkpoint.path}: H of {entry.name} must be {entry.dtype} "
                    f"{list(entry.shape)}, the file has {have}"
                )
        if info.model_fingerprint != checkpoint.fingerprint:
            raise CalibrationError(
                f"{path} was made from other weights (model {info.model_fingerprint[:12]}, "
                f"{checkpoint.path} is {checkpoint.fingerprint[:12]}): run calibrate again"
            )
        return cls(path, info, header)

    def hessian(self, key: MatrixKey) -> Tensor:
        """H of the matrix's input: (in, in) float32, symmetric, on the CPU.

        Raises:
            CalibrationError: there is none for this matrix.
            NonFiniteValues: the file is damaged.
        """
        header = self._header.tensors.get(tensor_name(key.layer_idx, input_name(key)))
        if header is None:
            raise CalibrationError(f"{self.path} has no H for matrix {key}")
        half = read_finite(header)
        n = int(((8 * half.numel() + 1) ** 0.5 - 1) / 2 + 0.5)
        return unpack_half(half, n)
