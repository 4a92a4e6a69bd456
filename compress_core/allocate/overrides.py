"""Overrides: one config per matrix as YAML. A line a matrix in a fixed order, so that two allocations diff well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError
from compress_core.matrix import PROJECTIONS, MatrixKey, MatrixSpec
from compress_core.strict_yaml import load_yaml

VERSION = 1


def overrides_to_yaml(configs: Mapping[MatrixKey, CompressionConfig]) -> str:
    """Write one config per matrix, in the order of the model; ``overrides_from_yaml`` inverts it.

    Every field is written out: a default that changes later must not change what a file means.
    """
    lines = [f"version: {VERSION}", "matrices:"]
    for key in sorted(configs, key=lambda k: (k.layer_idx, PROJECTIONS.index(k.projection), k.expert_idx)):
        fields = ", ".join(f"{name}: {value}" for name, value in configs[key].to_dict().items())
        lines.append(f"  {key}: {{{fields}}}")
    if len(lines) == 2:
        lines[-1] += " {}"
    return "\n".join(lines) + "\n"


def overrides_from_yaml(text: str, specs: Sequence[MatrixSpec] | None = None) -> dict[MatrixKey, CompressionConfig]:
    """Read overrides; with ``specs`` also check that every matrix exists and can have its rank.

    Raises:
        ConfigError: no YAML, an unknown version or key, a matrix named twice or unknown, a field out of range, a rank
            above min(out, in). The message names the entry.
    """
    try:
        document = load_yaml(text)
    except Exception as error:  # PyYAML's constructors also raise ValueError, KeyError, RecursionError, …
        raise ConfigError(f"the overrides are not valid YAML: {error}") from error
    if not isinstance(document, dict) or set(document) != {"version", "matrices"}:
        raise ConfigError("overrides need exactly two keys: version and matrices")
    if document["version"] != VERSION:
        raise ConfigError(f"overrides of version {document['version']!r} are unknown: this is version {VERSION}")
    if not isinstance(document["matrices"], dict):
        raise ConfigError("matrices must map matrix names (LAYER.PROJECTION) to config fields")
    shapes = None if specs is None else {s.key: s for s in specs}
    configs: dict[MatrixKey, CompressionConfig] = {}
    for name, fields in document["matrices"].items():
        key, config = _entry(name, fields, shapes)
        if key in configs:
            raise ConfigError(f"override {name!r}: matrix {key} is named twice")
        configs[key] = config
    return configs


def _entry(
    name: Any, fields: Any, shapes: Mapping[MatrixKey, MatrixSpec] | None
) -> tuple[MatrixKey, CompressionConfig]:
    try:
        key = MatrixKey.parse(str(name))
    except ValueError as error:
        raise ConfigError(f"override {name!r}: {error}") from error
    if key.layer_idx < 0:
        raise ConfigError(f"override {name!r}: layers count from 0")
    if not isinstance(fields, dict):
        raise ConfigError(f"override {name!r} must be a mapping of config fields, not {fields!r}")
    try:
        config = CompressionConfig.from_dict(fields)
        if shapes is not None:
            if key not in shapes:
                raise ConfigError(f"the model has no matrix {key}")
            config.check_shape(shapes[key].out_features, shapes[key].in_features)
    except ConfigError as error:
        # same class, so that a rank too large stays one
        raise type(error)(f"override {name!r}: {error}") from error
    except TypeError as error:
        raise ConfigError(f"override {name!r}: {error}") from error
    return key, config
