"""Which configs matrices really take, where a rank exceeds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from compress_core.config import CompressionConfig
from compress_core.matrix import MatrixSpec


def fitting(spec: MatrixSpec, configs: Iterable[CompressionConfig]) -> dict[str, CompressionConfig]:
    """``config_hash`` → config as this matrix takes it: its rank cut to the matrix, equal ones merged, order kept."""
    found: dict[str, CompressionConfig] = {}
    for config in configs:
        cut = config.clamped(spec.out_features, spec.in_features)
        found.setdefault(cut.config_hash, cut)
    return found


def is_uniform(choice: Mapping[MatrixSpec, CompressionConfig]) -> bool:
    """Whether one config, its rank cut to each matrix, is what every matrix has."""
    widest = max(choice.values(), key=lambda config: config.rank)
    return all(
        widest.clamped(spec.out_features, spec.in_features).config_hash == config.config_hash
        for spec, config in choice.items()
    )
