"""Names of the weight matrices that are compressed."""

from __future__ import annotations

from dataclasses import dataclass

#: the seven projections of a decoder layer, in the order in which a layer uses them
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
ATTENTION_PROJECTIONS = ("q", "k", "v", "o")
MLP_PROJECTIONS = ("gate", "up", "down")
#: expert_idx of a matrix in a layer without experts
NO_EXPERT = -1


@dataclass(frozen=True, order=True, slots=True)
class MatrixKey:
    """One weight matrix: ``(layer_idx, projection, expert_idx)``; expert_idx is -1 without experts."""

    layer_idx: int
    projection: str
    expert_idx: int = NO_EXPERT

    def __str__(self) -> str:
        name = f"{self.layer_idx}.{self.projection}"
        return name if self.expert_idx == NO_EXPERT else f"{name}.{self.expert_idx}"

    @classmethod
    def parse(cls, text: str) -> MatrixKey:
        """Inverse of ``str``: ``"3.down"`` or ``"3.down.7"``.

        Raises:
            ValueError: the text is not of that form or names no known projection.
        """
        parts = text.split(".")
        if len(parts) not in (2, 3) or parts[1] not in PROJECTIONS:
            raise ValueError(
                f"{text!r} is no matrix name: write LAYER.PROJECTION[.EXPERT], "
                f"with a projection out of {', '.join(PROJECTIONS)}"
            )
        return cls(int(parts[0]), parts[1], int(parts[2]) if len(parts) == 3 else NO_EXPERT)


@dataclass(frozen=True, slots=True)
class MatrixSpec:
    """A matrix and its shape: weight of shape (out_features, in_features)."""

    key: MatrixKey
    out_features: int
    in_features: int
    #: name of the weight tensor in the checkpoint
    tensor_name: str
    #: first and last + 1 row of that tensor where it is fused with other matrices (Phi-3: q, k and v); None = all of it
    rows: tuple[int, int] | None = None

    @property
    def n_weights(self) -> int:
        return self.out_features * self.in_features

    @property
    def module_name(self) -> str:
        """The linear module whose weight the tensor is."""
        return self.tensor_name.removesuffix(".weight")

    @property
    def name(self) -> str:
        """Unique in the model: the module's name, and the projection too where several are fused in it."""
        return self.module_name if self.rows is None else f"{self.module_name}.{self.key.projection}"
