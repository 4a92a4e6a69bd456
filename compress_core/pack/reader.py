"""PackedModel: a packed model on disk, read bit-exactly, one matrix at a time."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from compress_core.checkpoint.checkpoint import HEAD_TENSOR, INDEX_FILE
from compress_core.checkpoint.headers import FileHeader, TensorHeader
from compress_core.checkpoint.read import read_finite, read_tensor
from compress_core.compressed import CompressedMatrix
from compress_core.config import CompressionConfig
from compress_core.errors import PackedFormatError
from compress_core.matrix import PROJECTIONS, MatrixKey
from compress_core.pack.description import PACKED_SUFFIX, ModelDescription
from compress_core.pack.header import read_packed_header
from compress_core.pack.layout import FILE_NAME

#: what format version 1 called its file
_FILE_NAME_1 = "packed.safetensors"


class PackedModel:
    """A source of weights for the stream runner (see ``compress_core.stream``): matrices are dequantised on demand."""

    def __init__(self, path: Path, header: FileHeader, description: ModelDescription) -> None:
        self.path = path
        self.fingerprint = description.fingerprint
        self.layers_prefix = description.layers_prefix
        self.n_layers = description.n_layers
        self._header = header
        self._matrices = description.matrices
        self._modules = {self._key(name): name for name in description.matrices}
        packed = {name + PACKED_SUFFIX for name in description.matrices}
        self._dense: dict[str, TensorHeader] = {n: t for n, t in header.tensors.items() if n not in packed}
        self.tied_head = HEAD_TENSOR not in self._dense

    @classmethod
    def open(cls, path: Path | str) -> PackedModel:
        """Open the directory of a packed model and check its header.

        Raises:
            PackedFormatError: missing, in several files, truncated, or not a packed model of this version.
        """
        root = Path(path)
        if (root / _FILE_NAME_1).exists():
            raise PackedFormatError(f"{root} holds a packed model of format version 1: compress the model again")
        if not (root / FILE_NAME).exists():
            if (root / INDEX_FILE).exists():
                raise PackedFormatError(
                    f"{root} holds a model in several files: load it with transformers and save it as one file, with "
                    "a larger max_shard_size"
                )
            raise PackedFormatError(f"{root} holds no {FILE_NAME}: it is no packed model")
        return cls(root, *read_packed_header(root / FILE_NAME))

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return (self.path / FILE_NAME).stat().st_size

    def keys(self) -> tuple[MatrixKey, ...]:
        """The compressed matrices, in the order of their layers and PROJECTIONS."""
        return tuple(sorted(self._modules, key=lambda key: (key.layer_idx, PROJECTIONS.index(key.projection))))

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
        return name in self._dense or (isinstance(name, str) and name.removesuffix(".weight") in self._matrices)

    def tensor(self, name: str) -> Tensor:
        """A tensor by the name that it has in the original checkpoint.

        Raises:
            PackedFormatError: there is none of this name.
        """
        if name not in self:
            raise PackedFormatError(f"{self.path} has no tensor {name}")
        if name in self._dense:
            return read_finite(self._dense[name])
        return self._compressed(name.removesuffix(".weight")).dequantize()

    def _compressed(self, module: str) -> CompressedMatrix:
        info = self._matrices[module]
        blob = read_tensor(self._header.tensors[module + PACKED_SUFFIX])
        return CompressedMatrix.from_blob(blob, info.config, info.shape)

    def _module(self, key: MatrixKey) -> str:
        try:
            return self._modules[key]
        except KeyError:
            raise PackedFormatError(f"{self.path} has no matrix {key}") from None

    def _key(self, module: str) -> MatrixKey:
        number, _, tail = module.removeprefix(f"{self.layers_prefix}.").partition(".")
        projection = tail.rpartition(".")[2].removesuffix("_proj")
        if projection not in PROJECTIONS or not number.isdecimal():
            raise PackedFormatError(f"{self.path}: its description is damaged ({module} is no projection)")
        return MatrixKey(int(number), projection)
