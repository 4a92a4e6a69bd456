"""FusedLinear: a linear layer whose rows are several packed matrices, such as Phi-3's ``qkv_proj``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compress_core.pack.linear import CompressedLinear


class FusedLinear(nn.Module):
    """y = (Ŵ₁ x, Ŵ₂ x, …) + b. Each part is a child without a bias of its own, by the name of its projection."""

    def __init__(self, parts: Mapping[str, CompressedLinear], bias: nn.Parameter | None) -> None:
        super().__init__()
        self.names = tuple(parts)
        for name, part in parts.items():
            self.add_module(name, part)
        self.in_features = self.parts[0].in_features
        self.out_features = sum(part.out_features for part in self.parts)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", bias)

    @property
    def parts(self) -> list[CompressedLinear]:
        """The packed layers, from the first row to the last."""
        found = [self.get_submodule(name) for name in self.names]
        return [part for part in found if isinstance(part, CompressedLinear)]

    @torch.no_grad()
    def dequantized(self, dtype: torch.dtype) -> nn.Linear:
        """The same layer with one dense weight; it shares the bias."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta", dtype=dtype)
        linear.weight = nn.Parameter(torch.cat([part.dequantized(dtype).weight for part in self.parts]))
        linear.register_parameter("bias", self.bias)
        return linear

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([part(x) for part in self.parts], dim=-1)
        return y if self.bias is None else y + self.bias.to(y.dtype)
