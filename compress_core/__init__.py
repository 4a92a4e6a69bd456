"""The numerics of bitbudget: tensors in, tensors and numbers out.

Torch-backed names are resolved on first use, so that a server without torch can import ``compress_core.fit``,
``compress_core.allocate``, ``compress_core.config`` and their like.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from compress_core.config import CompressionConfig
from compress_core.matrix import PROJECTIONS, MatrixKey, MatrixSpec
from compress_core.measurement import MatrixMeasurement
from compress_core.version import NUMERICS_VERSION

if TYPE_CHECKING:
    from compress_core.decompose import CompressedMatrix, compress_matrix
    from compress_core.sweep import sweep_matrix

_TORCH_BACKED = {
    "CompressedMatrix": "compress_core.decompose",
    "compress_matrix": "compress_core.decompose",
    "sweep_matrix": "compress_core.sweep",
}

__all__ = [
    "NUMERICS_VERSION",
    "PROJECTIONS",
    "CompressedMatrix",
    "CompressionConfig",
    "MatrixKey",
    "MatrixMeasurement",
    "MatrixSpec",
    "compress_matrix",
    "sweep_matrix",
]


def __getattr__(name: str) -> Any:
    if name in _TORCH_BACKED:
        return getattr(import_module(_TORCH_BACKED[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
