"""The distinct inputs of a decoder layer: projections that read the same activations share one H. Torch-free."""

from __future__ import annotations

from compress_core.matrix import NO_EXPERT, MatrixKey

#: input group -> the projections that read it
INPUT_GROUPS: dict[str, tuple[str, ...]] = {
    "qkv": ("q", "k", "v"),
    "o": ("o",),
    "gate_up": ("gate", "up"),
    "down": ("down",),
}
INPUT_OF = {projection: group for group, projections in INPUT_GROUPS.items() for projection in projections}


def input_name(key: MatrixKey) -> str:
    """The input that a matrix reads, unique within its layer: ``qkv``, ``down``, or ``down.7`` of an expert."""
    group = INPUT_OF[key.projection]
    return group if key.expert_idx == NO_EXPERT else f"{group}.{key.expert_idx}"
