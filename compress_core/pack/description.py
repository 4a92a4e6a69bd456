"""ModelDescription: what the file of a packed model says about its matrices, as JSON in its metadata. Torch-free."""

from __future__ import annotations

import json
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
            "matrices": {name: [number[info.config], *info.shape] for name, info in self.matrices.items()},
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
                str(name): PackedMatrixInfo(configs[number], (int(out_features), int(in_features)))
                for name, (number, out_features, in_features) in values["matrices"].items()
            }
            for info in matrices.values():
                info.config.check_shape(*info.shape)
            return cls(str(values["fingerprint"]), str(values["layers"]), int(values["n_layers"]), matrices)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError, ConfigError) as error:
            raise PackedFormatError(f"its description is damaged ({error!r})") from error


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
