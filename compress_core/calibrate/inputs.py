"""The distinct inputs of a decoder layer: projections that read the same activations share one H. Torch-free."""

from __future__ import annotations

#: input group -> the projections that read it
INPUT_GROUPS: dict[str, tuple[str, ...]] = {
    "qkv": ("q", "k", "v"),
    "o": ("o",),
    "gate_up": ("gate", "up"),
    "down": ("down",),
}
INPUT_OF = {projection: group for group, projections in INPUT_GROUPS.items() for projection in projections}
