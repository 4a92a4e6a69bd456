"""ModelDescription: what the file of a packed model says about its matrices, as JSON in its metadata. Torch-free."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError, PackedFormatError
from compress_core.nbytes import predicted_nbytes

#: version of the format that is written and the only one that is read; docs/format.md says when it changes
VERSION = "2"
#: ``quant_method`` in config.json: what transformers finds the quantizer by
QUANT_METHOD = "bitbudget"
#: key in the file's metadata
DESCRIPTION_KEY = "bitbudget"
#: a matrix is stored as one uint8 tensor: its module's name with this suffix
PACKED_SUFFIX = ".packed"


@dataclass(frozen=True, slots=True)
class PackedMatrixInfo:
    """How one matrix was compressed."""

    config: CompressionConfig
    #: (out_features, in_features)
    shape: tuple[int, int]
    #: where several matrices are fused in one module: the first of its rows that is this matrix's
    first_row: int | None = None

    @property
    def place(self) -> tuple[int, ...]:
        """The shape, and the first row where there is one."""
        return self.shape if self.first_row is None else (*self.shape, self.first_row)

    @property
    def nbytes(self) -> int:
        return predicted_nbytes(self.config, *self.shape)


@dataclass(frozen=True)
class ModelDescription:
    """The compressed matrices of a model and where it came from."""

    #: of the checkpoint that was compressed
    fingerprint: str
    #: module path of the list of decoder layers
    layers_prefix: str
    n_layers: int
    #: by module name, e.g. ``model.layers.0.mlp.down_proj``
    matrices: Mapping[str, PackedMatrixInfo]

    def fused(self) -> dict[str, tuple[str, ...]]:
        """Module -> the names of the matrices that are its rows, from the first row to the last.

        Raises:
            PackedFormatError: rows of a module are described twice or not at all.
        """
        parts: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for name, info in self.matrices.items():
            if info.first_row is not None:
                parts[name.rpartition(".")[0]].append((info.first_row, name))
        for found in parts.values():
            found.sort()
            end = 0
            for first_row, name in found:
                if first_row != end:
                    raise PackedFormatError(
                        f"its description is damaged: {name} begins at row {first_row}, not at {end}"
                    )
                end += self.matrices[name].shape[0]
        return {module: tuple(name for _, name in found) for module, found in parts.items()}

    def to_json(self) -> str:
        """Compact JSON; configs are stored once each."""
        configs = list(dict.fromkeys(info.config for info in self.matrices.values()))
        number = {config: n for n, config in enumerate(configs)}
        values = {
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "layers": self.layers_prefix,
            "n_layers": self.n_layers,
            "configs": [config.to_dict() for config in configs],
            "matrices": {name: [number[info.config], *info.place] for name, info in self.matrices.items()},
        }
        return json.dumps(values, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of :meth:`to_json`.

        Raises:
            PackedFormatError: another version, not readable, or a rank that its matrix cannot have.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            check_version(values["version"])
            configs = [CompressionConfig.from_dict(config) for config in values["configs"]]
            matrices = {
                str(name): PackedMatrixInfo(
                    configs[number], (int(out_features), int(in_features)), *map(int, first_row)
                )
                for name, (number, out_features, in_features, *first_row) in values["matrices"].items()
            }
            for info in matrices.values():
                info.config.check_shape(*info.shape)
            described = cls(str(values["fingerprint"]), str(values["layers"]), int(values["n_layers"]), matrices)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError, ConfigError) as error:
            raise PackedFormatError(f"its description is damaged ({error!r})") from error
        described.fused()
        return described


def check_version(version: object) -> None:
    """Refuse every version but the own one.

    Raises:
        PackedFormatError: names both versions and the cure.
    """
    if version != VERSION:
        raise PackedFormatError(
            f"it has format version {version!r}, this release reads version {VERSION!r}: "
            "take the release that wrote it, or compress the model again"
        )
