"""The cells of a sweep: which configs a matrix is really measured with."""

from __future__ import annotations

from collections.abc import Iterable

from compress_core.config import CompressionConfig
from compress_core.matrix import MatrixSpec


def fitting(spec: MatrixSpec, configs: Iterable[CompressionConfig]) -> dict[str, CompressionConfig]:
    """``config_hash`` → config as this matrix takes it: its rank cut to the matrix, equal ones merged, order kept."""
    found: dict[str, CompressionConfig] = {}
    for config in configs:
        cut = config.clamped(spec.out_features, spec.in_features)
        found.setdefault(cut.config_hash, cut)
    return found
