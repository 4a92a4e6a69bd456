"""DecoderConfig: the sizes that config.json promises, as far as it says them. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress_core.errors import CheckpointError
from compress_core.matrix import ATTENTION_PROJECTIONS, NO_EXPERT, MatrixKey

#: what families call the number of routed experts, what says which layers have none, and the width of one
_N_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_DENSE_LAYERS = ("mlp_only_layers", "decoder_sparse_step", "first_k_dense_replace")
_EXPERT_WIDTH = ("moe_intermediate_size", "intermediate_size")


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Sizes of a decoder; None wherever config.json is silent. A list of one number a layer is read as such.

    Every method raises CheckpointError where a field is there and is no size.
    """

    fields: Mapping[str, Any]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """The decoder's part of config.json: all of it, or ``text_config`` of a multimodal model."""
        nested = config.get("text_config")
        return cls(nested if isinstance(nested, Mapping) else config)

    @property
    def n_layers(self) -> int:
        """Raises CheckpointError: there is none."""
        found = self._size("num_hidden_layers")
        if found is None:
            raise CheckpointError("config.json has no num_hidden_layers: it does not describe a decoder")
        return found

    @property
    def hidden_size(self) -> int | None:
        return self._size("hidden_size")

    @property
    def n_positions(self) -> int | None:
        """The longest text that the model was made for."""
        return self._size("max_position_embeddings")

    @property
    def n_chosen_experts(self) -> int | None:
        """Experts that each token goes through."""
        return self._size("num_experts_per_tok")

    @property
    def vocab_size(self) -> int | None:
        return self._size("vocab_size")

    def attention_widths(self, layer_idx: int) -> tuple[int | None, int | None]:
        """Rows of q, and of k and v each."""
        heads = self._size("num_attention_heads", layer_idx)
        if heads == 0:
            raise CheckpointError("config.json says num_attention_heads = 0: expected at least one")
        kv_heads = self._size("num_key_value_heads", layer_idx) or heads
        hidden, head_dim = self._size("hidden_size"), self._size("head_dim", layer_idx)
        if not head_dim and hidden and heads:
            head_dim = hidden // heads
        return (
            heads * head_dim if heads and head_dim else None,
            kv_heads * head_dim if kv_heads and head_dim else None,
        )

    def n_experts(self, layer_idx: int) -> int | None:
        """Routed experts of a layer; 0 where config.json says that the layer has none."""
        found = next((n for field in _N_EXPERTS if (n := self._size(field, layer_idx)) is not None), None)
        if not found:
            return found
        if layer_idx in (self.fields.get("mlp_only_layers") or ()):
            return 0
        step, first_dense = self._size("decoder_sparse_step"), self._size("first_k_dense_replace")
        if step and (layer_idx + 1) % step:
            return 0
        return 0 if first_dense is not None and layer_idx < first_dense else found

    @property
    def tells_dense_layers(self) -> bool:
        """Whether config.json says which layers of a mixture of experts have none."""
        return any(self.fields.get(field) is not None for field in _DENSE_LAYERS)

    def shape(self, key: MatrixKey, *, beside_experts: bool) -> tuple[int | None, int | None]:
        """(out_features, in_features) of a matrix; ``beside_experts``: its layer has routed experts."""
        hidden = self._size("hidden_size")
        if key.projection in ATTENTION_PROJECTIONS:
            q_out, kv_out = self.attention_widths(key.layer_idx)
            return {"q": (q_out, hidden), "o": (hidden, q_out)}.get(key.projection, (kv_out, hidden))
        width = self._mlp_width(key, beside_experts)
        return (hidden, width) if key.projection == "down" else (width, hidden)

    def _mlp_width(self, key: MatrixKey, beside_experts: bool) -> int | None:
        if key.expert_idx != NO_EXPERT:
            return next((n for field in _EXPERT_WIDTH if (n := self._size(field, key.layer_idx))), None)
        if not beside_experts:
            return self._size("intermediate_size", key.layer_idx)
        if shared := self._size("shared_expert_intermediate_size", key.layer_idx):
            return shared
        n_shared, width = self._size("n_shared_experts"), self._size("moe_intermediate_size")
        return n_shared * width if n_shared and width else None

    def _size(self, field: str, layer_idx: int | None = None) -> int | None:
        value = self.fields.get(field)
        if isinstance(value, list) and layer_idx is not None and layer_idx < len(value):
            value = value[layer_idx]
        if value is None or isinstance(value, list):
            return None
        if type(value) is not int or value < 0:
            raise CheckpointError(f"config.json says {field} = {value!r}: expected a whole number")
        return value
