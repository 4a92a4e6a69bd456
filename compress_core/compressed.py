"""CompressedMatrix: the packed tensors of one matrix and how to read them.

Tensors, all on the CPU (``predicted_nbytes`` counts the same list):

    q_codes     uint8    codes of Q; e8: the 16-bit code of each 8 weights, row by row
    q_residual  uint8    e8 at 3 and 4 bits: the second stage's code of each 8 weights
    q_tail      uint8    e8, width not a multiple of 8: scalar codes of the last columns
    q_scale     float32 (1,), the scale of the matrix; rtn and gptq: float16 (O,), one step a row
    q_rows      uint8 (O,), logarithmic scale of each row (not for rtn and gptq); it scales the rows of L too
    l_codes, l_scales    packed codes and float16 (r,), or l_values float16 (O, r) at 16 bits
    r_codes, r_scales    packed codes and float16 (r,), or r_values float16 (r, I) at 16 bits

Signs of the rotation follow from the seed and are not stored.

Shapes: O = out_features, I = in_features, r = rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from compress_core.codebooks import get_codebook
from compress_core.codebooks.rtn import rtn_values
from compress_core.config import BASELINE_CODEBOOKS, CompressionConfig
from compress_core.errors import ConfigError, PackedFormatError
from compress_core.incoherence import InputRotation
from compress_core.ldlq import Rounded
from compress_core.lowrank import Factors, QuantizedFactor, decode_factor
from compress_core.nbytes import E8_BLOCK, predicted_nbytes
from compress_core.packing import pack_bits, unpack_bits
from compress_core.precision import exact_float32
from compress_core.row_scales import decode_row_scales


@dataclass(frozen=True)
class CompressedMatrix:
    """W ≈ Q + L·R as packed tensors. Made by ``compress_matrix`` or read back with :meth:`from_tensors`."""

    config: CompressionConfig
    #: (out_features, in_features)
    shape: tuple[int, int]
    packed: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all packed tensors: exactly what the serialiser writes for this matrix."""
        return sum(t.numel() * t.element_size() for t in self.packed.values())

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])

    def tensors(self) -> dict[str, Tensor]:
        """The packed tensors by name."""
        return dict(self.packed)

    def meta(self) -> dict[str, Any]:
        """What :meth:`from_tensors` needs besides the tensors; JSON-able."""
        return {"config": self.config.to_dict(), "shape": list(self.shape)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`tensors` and :meth:`meta`; ``dequantize`` is equal bit for bit.

        Raises:
            PackedFormatError: a tensor is missing, unknown, or of the wrong type or size.
        """
        try:
            config = CompressionConfig.from_dict(meta["config"])
            shape = (int(meta["shape"][0]), int(meta["shape"][1]))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise PackedFormatError(f"metadata of a packed matrix is not readable: {error!r}") from error
        packed = {name: t.detach().cpu() for name, t in tensors.items()}
        expected = expected_names(config, shape[1])
        if set(packed) != expected:
            wrong = ", ".join(sorted(set(packed) ^ expected))
            raise PackedFormatError(f"a {config} matrix of shape {shape} has missing or unknown tensors: {wrong}")
        for name, tensor in packed.items():
            if tensor.dtype != _dtype_of(name, config):
                raise PackedFormatError(f"{name} must be {_dtype_of(name, config)}, not {tensor.dtype}")
        matrix = cls(config, shape, packed)
        try:
            expected_bytes = predicted_nbytes(config, *shape)
        except ConfigError as error:
            raise PackedFormatError(f"metadata of a packed matrix make no sense: {error}") from error
        if matrix.nbytes != expected_bytes:
            raise PackedFormatError(
                f"a {config} matrix of shape {shape} takes {expected_bytes} bytes, "
                f"but its tensors have {matrix.nbytes}: the file is truncated or its header lies"
            )
        return matrix

    @torch.no_grad()
    @exact_float32()
    def dequantize(self, *, device: torch.device | str | None = None) -> Tensor:
        """Ŵ (out_features, in_features), float32, on ``device`` (default: CPU)."""
        target = torch.device(device or "cpu")
        packed = {name: t.to(target) for name, t in self.packed.items()}
        out_features, in_features = self.shape
        if self.config.codebook in BASELINE_CODEBOOKS:
            codes = unpack_bits(packed["q_codes"], self.config.b_q, out_features * in_features)
            return rtn_values(codes.reshape(self.shape), packed["q_scale"], self.config.b_q)
        w_OI = self._decode_q(packed)
        if self.config.rank:
            left = _decode(packed, "l", self.config.factor_bits_l, (out_features, self.config.rank))
            right = _decode(packed, "r", self.config.factor_bits_r, (self.config.rank, in_features))
            w_OI = w_OI + left @ right
        w_OI = w_OI * decode_row_scales(packed["q_rows"], packed["q_scale"])[:, None]
        return InputRotation.make(in_features, self.config.seed, target).unrotate(w_OI)

    def _decode_q(self, packed: Mapping[str, Tensor]) -> Tensor:
        """Values of Q in units of its scale, (O, I) float32."""
        rows, columns = self.shape
        bits = self.config.b_q
        device = packed["q_scale"].device
        scalar = get_codebook("scalar", bits, device)
        if self.config.codebook == "scalar":
            return scalar.decode(unpack_bits(packed["q_codes"], bits, rows * columns)).reshape(self.shape)
        codebook = get_codebook("e8", bits, device)
        count, tail = divmod(columns, E8_BLOCK)
        streams = [
            unpack_bits(packed[name], width, rows * count)
            for name, width in zip(("q_codes", "q_residual"), codebook.code_bits, strict=False)
        ]
        values = codebook.decode(torch.stack(streams, dim=-1)).reshape(rows, count * E8_BLOCK)
        if not tail:
            return values
        last = scalar.decode(unpack_bits(packed["q_tail"], bits, rows * tail)).reshape(rows, tail)
        return torch.cat([values, last], dim=1)


def expected_names(config: CompressionConfig, in_features: int) -> set[str]:
    """Names of the packed tensors that a config has."""
    names = {"q_codes", "q_scale"}
    if config.codebook == "e8":
        if config.b_q > 2:
            names.add("q_residual")
        if in_features % E8_BLOCK:
            names.add("q_tail")
    if config.codebook not in BASELINE_CODEBOOKS:
        names.add("q_rows")
    if config.rank:
        for side, bits in (("l", config.factor_bits_l), ("r", config.factor_bits_r)):
            names |= {f"{side}_values"} if bits == 16 else {f"{side}_codes", f"{side}_scales"}
    return names


def _dtype_of(name: str, config: CompressionConfig) -> torch.dtype:
    if name in ("l_values", "r_values", "l_scales", "r_scales"):
        return torch.float16
    if name == "q_scale":
        return torch.float16 if config.codebook in BASELINE_CODEBOOKS else torch.float32
    return torch.uint8


def pack_q(rounded: Rounded, config: CompressionConfig) -> dict[str, Tensor]:
    """Packed codes of Q from the stages that rounding kept."""
    parts_PIO = rounded.parts_PIO
    device = parts_PIO.device
    stages, columns, rows = parts_PIO.shape
    scalar = get_codebook("scalar", config.b_q, device)
    if config.codebook == "scalar":
        return {"q_codes": pack_bits(scalar.codes(parts_PIO).T, config.b_q).cpu()}
    codebook = get_codebook("e8", config.b_q, device)
    count, tail = divmod(columns, E8_BLOCK)
    blocks = parts_PIO[:, : count * E8_BLOCK].reshape(stages, count, E8_BLOCK, rows).permute(0, 3, 1, 2)
    codes = codebook.codes(blocks.reshape(stages, rows * count, E8_BLOCK))
    out = {
        name: pack_bits(codes[:, stage], bits).cpu()
        for stage, (name, bits) in enumerate(zip(("q_codes", "q_residual"), codebook.code_bits, strict=False))
    }
    if tail:
        out["q_tail"] = pack_bits(scalar.codes(parts_PIO[:1, count * E8_BLOCK :]).T, config.b_q).cpu()
    return out


def pack_factors(factors: Factors, config: CompressionConfig) -> dict[str, Tensor]:
    """Packed L̂ and R̂."""
    out: dict[str, Tensor] = {}
    for side, factor, bits in (
        ("l", factors.left, config.factor_bits_l),
        ("r", factors.right, config.factor_bits_r),
    ):
        out |= _pack_factor(side, factor, bits)
    return out


def _pack_factor(side: str, factor: QuantizedFactor, bits: int) -> dict[str, Tensor]:
    if factor.codes is None or factor.scales_r is None:
        return {f"{side}_values": factor.value.to(torch.float16).cpu().contiguous()}
    return {f"{side}_codes": pack_bits(factor.codes, bits).cpu(), f"{side}_scales": factor.scales_r.cpu()}


def _decode(packed: Mapping[str, Tensor], side: str, bits: int, shape: tuple[int, int]) -> Tensor:
    if bits == 16:
        return packed[f"{side}_values"].reshape(shape).to(torch.float32)
    codes = unpack_bits(packed[f"{side}_codes"], bits, shape[0] * shape[1]).reshape(shape)
    return decode_factor(codes, packed[f"{side}_scales"], bits, component_dim=1 if side == "l" else 0)
