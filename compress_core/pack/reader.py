"""PackedModel: a packed model on disk, read bit-exactly, one matrix at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from compress_core.checkpoint.checkpoint import HEAD_TENSOR, INDEX_FILE
from compress_core.checkpoint.headers import TensorHeader
from compress_core.checkpoint.read import read_finite, read_tensor
from compress_core.compressed import CompressedMatrix
from compress_core.config import CompressionConfig
from compress_core.errors import PackedFormatError
from compress_core.matrix import NO_EXPERT, PROJECTIONS, MatrixKey
from compress_core.pack.description import PACKED_SUFFIX, ModelDescription
from compress_core.pack.header import read_packed
from compress_core.pack.layout import FILE_NAME, stored_bytes, weight_files

#: what format version 1 called its file
_FILE_NAME_1 = "packed.safetensors"
_HEAD = HEAD_TENSOR.removesuffix(".weight")
_MATRIX = re.compile(r"^(?:.*?\.)?(?:experts\.(\d+)\.)?(?:(q|k|v|o|gate|up|down)_proj|\w+_proj\.(q|k|v|gate|up))$")


class PackedModel:
    """A source of weights for the stream runner (see ``compress_core.stream``): matrices are dequantised on demand."""

    def __init__(self, path: Path, tensors: Mapping[str, TensorHeader], description: ModelDescription) -> None:
        self.path = path
        self.fingerprint = description.fingerprint
        self.layers_prefix = description.layers_prefix
        self.n_layers = description.n_layers
        self._tensors = tensors
        self._matrices = description.matrices
        self._modules = {self._key(name): name for name in description.matrices if name != _HEAD}
        #: module -> the matrices that are its rows, from the first row to the last
        self._fused = description.fused()
        packed = {name + PACKED_SUFFIX for name in description.matrices}
        self._dense = {name: tensor for name, tensor in tensors.items() if name not in packed}
        self.tied_head = HEAD_TENSOR not in self

    @classmethod
    def open(cls, path: Path | str) -> PackedModel:
        """Open the directory of a packed model, in one file or in several, and check its headers.

        Raises:
            PackedFormatError: missing, truncated, a file that is missing or not what the index says, or not a packed
                model of this version.
        """
        root = Path(path)
        if (root / _FILE_NAME_1).exists():
            raise PackedFormatError(f"{root} holds a packed model of format version 1: compress the model again")
        files = weight_files(root)
        if not files:
            raise PackedFormatError(f"{root} holds no {FILE_NAME} and no {INDEX_FILE}: it is no packed model")
        for file in files:
            if not file.exists():
                raise PackedFormatError(f"{file.name} is missing from {root}: {INDEX_FILE} names it; copy it again")
        tensors, description = read_packed(files)
        if files != [root / FILE_NAME]:
            _check_index(root, tensors)
        return cls(root, tensors, description)

    @property
    def nbytes(self) -> int:
        """Bytes of the files that hold tensors.

        Raises:
            PackedFormatError: one of them is gone.
        """
        found = stored_bytes(self.path)
        if found is None:
            raise PackedFormatError(f"files of {self.path} are gone since it was opened")
        return found

    def keys(self) -> tuple[MatrixKey, ...]:
        """The compressed matrices, in the order of their layers, experts and PROJECTIONS."""
        order = {projection: number for number, projection in enumerate(PROJECTIONS)}
        return tuple(sorted(self._modules, key=lambda key: (key.layer_idx, key.expert_idx, order[key.projection])))

    @property
    def head(self) -> CompressedMatrix | None:
        """The compressed head; None where it is not compressed."""
        return self._compressed(_HEAD) if _HEAD in self._matrices else None

    def config(self, key: MatrixKey) -> CompressionConfig:
        return self._matrices[self._module(key)].config

    def matrix(self, key: MatrixKey) -> CompressedMatrix:
        """The packed matrix.

        Raises:
            PackedFormatError: there is none of this name.
        """
        return self._compressed(self._module(key))

    def weight(self, key: MatrixKey) -> Tensor:
        """Ŵ (out_features, in_features) float32: bit for bit what ``compress_matrix(…).dequantize()`` gave."""
        return self.matrix(key).dequantize()

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        module = name.removesuffix(".weight")
        return name in self._dense or (module != name and (module in self._matrices or module in self._fused))

    def tensor(self, name: str) -> Tensor:
        """A tensor by the name that it has in the original checkpoint; fused matrices are put together again.

        Raises:
            PackedFormatError: there is none of this name.
        """
        if name not in self:
            raise PackedFormatError(f"{self.path} has no tensor {name}")
        if name in self._dense:
            return read_finite(self._dense[name])
        module = name.removesuffix(".weight")
        parts = self._fused.get(module, (module,))
        weights = [self._compressed(part).dequantize() for part in parts]
        return weights[0] if len(weights) == 1 else torch.cat(weights)

    def _compressed(self, module: str) -> CompressedMatrix:
        info = self._matrices[module]
        blob = read_tensor(self._tensors[module + PACKED_SUFFIX])
        return CompressedMatrix.from_blob(blob, info.config, info.shape)

    def _module(self, key: MatrixKey) -> str:
        try:
            return self._modules[key]
        except KeyError:
            raise PackedFormatError(f"{self.path} has no matrix {key}") from None

    def _key(self, module: str) -> MatrixKey:
        number, _, tail = module.removeprefix(f"{self.layers_prefix}.").partition(".")
        match = _MATRIX.match(tail)
        if match is None or not number.isdecimal():
            raise PackedFormatError(f"{self.path}: its description is damaged ({module} is no projection)")
        return MatrixKey(int(number), match[2] or match[3], NO_EXPERT if match[1] is None else int(match[1]))


def _check_index(root: Path, tensors: Mapping[str, TensorHeader]) -> None:
    weight_map = json.loads((root / INDEX_FILE).read_text("utf-8"))["weight_map"]
    there = {name: tensor.file.name for name, tensor in tensors.items()}
    if wrong := sorted(name for name, _ in there.items() ^ weight_map.items()):
        name = wrong[0]
        raise PackedFormatError(
            f"{INDEX_FILE} of {root} lies: {name} is in {there.get(name, 'no file')}, the index says "
            f"{weight_map.get(name, 'no file')}"
        )
