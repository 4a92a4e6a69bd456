"""CompressedLinear: a linear layer whose weight stays packed in memory and is decoded when it is used.

With Ŵ = diag(s)·(Q̂ + L̂·R̂)·T and an orthogonal T, Ŵ·x = s ∘ (Q̂·(T x) + L̂·(R̂·(T x))): the activations are rotated
instead of the weight, the low-rank part is two thin products, and Ŵ itself is never formed.

Shapes: O = out_features, I = in_features, r = rank, T = tokens (all leading dimensions together).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress_core.compressed import CompressedMatrix, DecodedMatrix
from compress_core.config import RAW_CODEBOOK, CompressionConfig
from compress_core.nbytes import predicted_nbytes
from compress_core.pack.rotation import activation_rotation

_HALF = (torch.float16, torch.bfloat16)
#: tokens from which products with few rows of Q̂ at a time are slower than writing out more of them
_MANY_TOKENS = 32
_ROWS = 512


class CompressedLinear(nn.Module):
    """y = Ŵ x + b. The only state is ``packed``, the uint8 blob of the matrix, and ``bias``.

    Being bytes, ``packed`` passes through ``.half()``, ``.to(dtype)`` and ``state_dict`` unchanged. The output has the
    type of the input. Gradients reach the input and the bias, not the packed weight.

    Raises:
        RankTooLarge: the config's rank exceeds min(out_features, in_features).
    """

    packed: Tensor

    def __init__(
        self,
        config: CompressionConfig,
        in_features: int,
        out_features: int,
        *,
        bias: nn.Parameter | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.in_features, self.out_features = in_features, out_features
        self.bias: nn.Parameter | None
        nbytes = predicted_nbytes(config, out_features, in_features)
        self.register_buffer("packed", torch.empty(nbytes, dtype=torch.uint8, device=device))
        self.register_parameter("bias", bias)

    @classmethod
    def from_matrix(cls, matrix: CompressedMatrix, *, bias: Tensor | None = None) -> CompressedLinear:
        """The layer of a compressed matrix."""
        parameter = None if bias is None else nn.Parameter(bias)
        linear = cls(matrix.config, matrix.shape[1], matrix.shape[0], bias=parameter)
        linear.packed = matrix.blob()
        return linear

    @property
    def matrix(self) -> CompressedMatrix:
        """The packed matrix; its parts are views of ``packed``."""
        return CompressedMatrix.from_blob(self.packed, self.config, (self.out_features, self.in_features))

    @torch.no_grad()
    def dequantized(self, dtype: torch.dtype) -> nn.Linear:
        """The same layer with Ŵ stored densely; it shares the bias."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta", dtype=dtype)
        weight = self.matrix.dequantize(device=self.packed.device)
        linear.weight = nn.Parameter(weight.to(dtype))
        linear.register_parameter("bias", self.bias)
        return linear

    def forward(self, x: Tensor) -> Tensor:
        if self.config.codebook == RAW_CODEBOOK:  # the same product as that of the layer it stands for
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return nn.functional.linear(x, self.matrix.raw(self.packed.device).to(x.dtype), bias)
        with torch.no_grad():
            decoded = self.matrix.decode(device=self.packed.device)
        # half-precision products are faster on accelerators alone; a CPU has float32 units
        half = x.dtype in _HALF and x.device.type != "cpu"
        x_TI = x.reshape(-1, self.in_features).to(torch.float32)
        if decoded.rotation is not None:
            x_TI = activation_rotation(self.in_features, self.config.seed, x.device).rotate(x_TI)
        y_TO = multiply(x_TI, decoded, x.dtype if half else torch.float32)
        if self.bias is not None:
            y_TO = y_TO + self.bias
        return y_TO.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.config}"


def multiply(x_TI: Tensor, decoded: DecodedMatrix, dtype: torch.dtype) -> Tensor:
    """diag(s)·(Q̂ + L̂·R̂)·x, float32 (T, O), of rotated float32 activations, with products in ``dtype``.

    In half precision each token is divided by its norm first: Q̂ is in units of its scale, so that a product with an
    outlier token would leave the range of float16.
    """
    norm_T1 = None
    if dtype != torch.float32:
        norm_T1 = torch.linalg.vector_norm(x_TI, dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        x_TI = (x_TI / norm_T1).to(dtype)
    rows = _ROWS if x_TI.shape[0] >= _MANY_TOKENS else 1
    y_TO = torch.cat([(x_TI @ q_RI.to(dtype).T).to(torch.float32) for _, q_RI in decoded.q.strips(rows)], dim=1)
    if decoded.left_Or is not None and decoded.right_rI is not None:
        inner_Tr = (x_TI @ decoded.right_rI.to(dtype).T).to(torch.float32)
        y_TO = y_TO + inner_Tr @ decoded.left_Or.T
    y_TO = y_TO * decoded.scale_O
    return y_TO if norm_T1 is None else y_TO * norm_T1
