"""CalibrationInfo: what a calibration was made from. Every layer's file carries it, so none is taken for another's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from compress_core.errors import CalibrationError


@dataclass(frozen=True, kw_only=True)
class CalibrationInfo:
    """What a calibration was made from; equal infos mean equal Hessians."""

    model_fingerprint: str
    n_layers: int
    #: TextSource.to_dict() and the split, as the caller names them; or the archive that H was imported from
    source: str
    #: windows; 0 where H was imported
    samples: int
    length: int
    n_tokens: int
    seed: int
    #: hash of the exact token ids, or of the archive
    token_sha256: str
    #: dtype of the activations; H is always summed in float64
    dtype: str
    #: tokens that went through a layer at once: float32 sums depend on it
    batch_tokens: int
    device_kind: str
    numerics_version: int
    torch_version: str

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of ``asdict``.

        Raises:
            CalibrationError: a field is missing, unknown, or of another type.
        """
        if not isinstance(values, Mapping) or set(values) != {field.name for field in fields(cls)}:
            raise CalibrationError("the description of the calibration is damaged")
        for field in fields(cls):
            if type(values[field.name]).__name__ != field.type:
                raise CalibrationError(f"the description of the calibration is damaged: {field.name}")
        return cls(**values)

    @property
    def sha256(self) -> str:
        """Hash (hex) of all of it."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def difference(self, other: str) -> str:
        """In which fields the JSON of another info differs, for a message."""
        try:
            values = json.loads(other)
            ours = asdict(self)
            return ", ".join(name for name in ours if ours[name] != values.get(name)) or "its form"
        except (ValueError, AttributeError):
            return "its form"
