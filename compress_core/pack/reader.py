"""PackedModel: a packed model on disk, read bit-exactly, one matrix at a time."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from compress_core.checkpoint.checkpoint import HEAD_TENSOR
from compress_core.checkpoint.headers import FileHeader, TensorHeader, read_header
from compress_core.checkpoint.read import read_finite, read_tensor
from compress_core.compressed import CompressedMatrix
from compress_core.config import CompressionConfig
from compress_core.errors import CheckpointError, PackedFormatError
from compress_core.matrix import PROJECTIONS, MatrixKey
from compress_core.pack.layout import FILE_NAME, FORMAT, MODEL_KEY, VERSION


class PackedModel:
    """A source of weights for the stream runner (see ``compress_core.stream``): matrices are dequantised on demand."""

    def __init__(self, path: Path, header: FileHeader, model: Mapping[str, object]) -> None:
        self.path = path
        #: fingerprint of the checkpoint that was compressed
        self.fingerprint = str(model["fingerprint"])
        self.layers_prefix = str(model["layers"])
        self.n_layers = int(str(model["n_layers"]))
        self._header = header
        self._meta: dict[str, dict[str, object]] = {}
        self._modules: dict[MatrixKey, str] = {}
        self._parts: dict[str, dict[str, TensorHeader]] = defaultdict(dict)
        for name, text in header.metadata.items():
            if name not in ("format", MODEL_KEY):
                self._meta[name] = json.loads(text)
                self._modules[self._key(name)] = name
        self._dense: dict[str, TensorHeader] = {}
        for name, tensor in header.tensors.items():
            module, _, part = name.rpartition(".")
            if module in self._meta and part != "bias":
                self._parts[module][part] = tensor
            else:
                self._dense[name] = tensor
        self.tied_head = HEAD_TENSOR not in self._dense

    @classmethod
    def open(cls, path: Path | str) -> PackedModel:
        """Open the directory of a packed model and check its header.

        Raises:
            PackedFormatError: missing, truncated, or not a packed model of this version.
        """
        root = Path(path)
        if not (root / FILE_NAME).exists():
            raise PackedFormatError(f"{root} holds no {FILE_NAME}: it is no packed model")
        try:
            header = read_header(root / FILE_NAME)
        except CheckpointError as error:
            raise PackedFormatError(str(error)) from error
        if header.metadata.get("format") != FORMAT:
            raise PackedFormatError(f"{header.path} is a safetensors file, but no packed model")
        try:
            model = json.loads(header.metadata[MODEL_KEY])
            if model["version"] != VERSION:
                raise PackedFormatError(f"{header.path} has format version {model['version']}; this is {VERSION}")
            packed = cls(root, header, model)
        except (KeyError, ValueError, TypeError) as error:
            raise PackedFormatError(f"{header.path}: its metadata are damaged ({error!r})") from error
        for module in packed._meta:
            if module not in packed._parts:
                raise PackedFormatError(f"{header.path} describes {module} but holds no tensor of it")
        return packed

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return (self.path / FILE_NAME).stat().st_size

    def keys(self) -> tuple[MatrixKey, ...]:
        """The compressed matrices, in the order of their layers and PROJECTIONS."""
        return tuple(sorted(self._modules, key=lambda key: (key.layer_idx, PROJECTIONS.index(key.projection))))

    def config(self, key: MatrixKey) -> CompressionConfig:
        config = self._meta[self._module(key)]["config"]
        assert isinstance(config, dict)
        return CompressionConfig.from_dict(config)

    def matrix(self, key: MatrixKey) -> CompressedMatrix:
        """The packed matrix.

        Raises:
            PackedFormatError: there is none of this name, or its tensors do not fit its metadata.
        """
        return self._compressed(self._module(key))

    def weight(self, key: MatrixKey) -> Tensor:
        """Ŵ (out_features, in_features) float32: bit for bit what ``compress_matrix(…).dequantize()`` gave."""
        return self.matrix(key).dequantize()

    def __contains__(self, name: object) -> bool:
        return name in self._dense or (isinstance(name, str) and name.removesuffix(".weight") in self._meta)

    def tensor(self, name: str) -> Tensor:
        """A tensor by the name that it has in the original checkpoint."""
        if name in self._dense:
            return read_finite(self._dense[name])
        return self._compressed(name.removesuffix(".weight")).dequantize()

    def _compressed(self, module: str) -> CompressedMatrix:
        tensors = {part: read_tensor(header) for part, header in self._parts[module].items()}
        try:
            return CompressedMatrix.from_tensors(tensors, self._meta[module])
        except PackedFormatError as error:
            raise PackedFormatError(f"{self._header.path}, {module}: {error}") from error

    def _module(self, key: MatrixKey) -> str:
        try:
            return self._modules[key]
        except KeyError:
            raise PackedFormatError(f"{self.path} has no matrix {key}") from None

    def _key(self, module: str) -> MatrixKey:
        rest = module.removeprefix(f"{self.layers_prefix}.")
        number, _, tail = rest.partition(".")
        projection = tail.rpartition(".")[2].removesuffix("_proj")
        if projection not in PROJECTIONS:
            raise ValueError(f"{module} is no projection")
        return MatrixKey(int(number), projection)
