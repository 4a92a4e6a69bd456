"""PackedExperts: the routed experts of a layer, packed; only those that a token goes to are decoded.

It stands for a module of transformers that holds all experts in parameters of three dimensions (see
``compress_core.stream.experts``), and is called the same way. Its children are named as the tensors of a checkpoint
are: ``0.gate_proj``, ``0.up_proj``, ``0.down_proj``, ``1.gate_proj``, …

Shapes: T tokens, K experts a token, D hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress_core.matrix import MLP_PROJECTIONS
from compress_core.pack.linear import CompressedLinear
from compress_core.stream.experts import STACKED, check_experts, expert_view


class PackedExperts(nn.Module):
    """Σ over a token's experts of weight · down(act(gate x) ∘ up x).

    Args:
        original: the module it stands for, with parameters on the meta device; says how gate and up are combined.
        packed: for each expert its projections' layers.

    Raises:
        UnsupportedArchitecture: the original computes something else.
    """

    _original: nn.Module

    def __init__(self, original: nn.Module, packed: list[dict[str, CompressedLinear]]) -> None:
        super().__init__()
        check_experts(original)
        # not a child: its parameters are nobody's until it is dequantised
        object.__setattr__(self, "_original", original)
        self.num_experts = len(packed)
        for expert, layers in enumerate(packed):
            self.add_module(str(expert), nn.ModuleDict({f"{p}_proj": layers[p] for p in MLP_PROJECTIONS}))

    def layer(self, expert: int, projection: str) -> nn.Module:
        """One matrix of one expert."""
        return self.get_submodule(f"{expert}.{projection}_proj")

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """(T, D) of hidden states (T, D), the numbers (T, K) of their experts and these experts' weights (T, K)."""
        out_TD = torch.zeros_like(hidden_states)
        index_KT = top_k_index.T
        for expert in top_k_index.unique().tolist():
            if not 0 <= expert < self.num_experts:
                continue  # a place that routing left empty
            place, token = torch.where(index_KT == expert)
            x = hidden_states[token]
            gate_up = torch.cat([self.layer(expert, "gate")(x), self.layer(expert, "up")(x)], dim=-1)
            y = self.layer(expert, "down")(self._original._apply_gate(gate_up))  # type: ignore[operator]
            y = y * top_k_weights[token, place, None]
            out_TD.index_add_(0, token, y.to(out_TD.dtype))
        return out_TD

    @torch.no_grad()
    def dequantized(self, dtype: torch.dtype) -> nn.Module:
        """The module that it stands for, with dense parameters; one matrix at a time is decoded."""
        original = self._original
        for leaf in STACKED:
            like = original.get_parameter(leaf)
            device = next(self.buffers()).device
            setattr(original, leaf, nn.Parameter(torch.empty(like.shape, dtype=dtype, device=device)))
        for expert in range(self.num_experts):
            for projection in MLP_PROJECTIONS:
                layer = self.layer(expert, projection)
                assert isinstance(layer, CompressedLinear)
                expert_view(original, expert, projection).copy_(layer.matrix.dequantize(device=layer.packed.device))
        return original
