"""CompressedMatrix: the packed tensors of one matrix and how to read them.

Tensors, all on the CPU (``packed_parts`` has their types and shapes, and the order in which they are stored):

    q_codes     uint8    codes of Q, row by row; e8: the 16-bit code of each 8 weights
    q_residual  uint8    e8 at 3 and 4 bits: the second stage's code of each 8 weights
    q_tail      uint8    e8, width not a multiple of 8: scalar codes of the last columns
    q_scale     float32 (1,), the scale of the matrix; rtn and gptq: float16 (O,), one step a row
    q_rows      uint8 (O,), logarithmic scale of each row (not for rtn and gptq); it scales the rows of L too
    l_codes, l_scales    packed codes and float16 (r,), or l_values float16 (O, r) at 16 bits
    r_codes, r_scales    packed codes and float16 (r,), or r_values float16 (r, I) at 16 bits
    q_values, q_type     raw, in place of all others: 16-bit words (O, I), and uint8 (1,), which of ``TYPES`` they are

Signs of the rotation follow from the seed and are not stored.

Shapes: O = out_features, I = in_features, r = rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor

from compress_core.checkpoint.read import TORCH_DTYPES
from compress_core.codebooks import Codebook, codebook_for, get_codebook
from compress_core.codebooks.base import even_strips
from compress_core.codebooks.raw import TYPES, raw_type
from compress_core.config import BASELINE_CODEBOOKS, RAW_CODEBOOK, CompressionConfig
from compress_core.errors import ConfigError, PackedFormatError
from compress_core.incoherence import InputRotation
from compress_core.ldlq import Rounded
from compress_core.lowrank import FLOAT_BITS, Factors, QuantizedFactor, decode_factor, factor_codebook
from compress_core.nbytes import E8_BLOCK, packed_parts
from compress_core.packing import pack_bits, unpack_bits
from compress_core.precision import exact_float32
from compress_core.row_codes import RowCodes
from compress_core.row_scales import decode_row_scales

#: weights whose codes are looked up at once
_STRIP = 1 << 22


@dataclass(frozen=True)
class DecodedMatrix:
    """Ŵ = diag(scale)·(Q̂ + L̂·R̂)·rotation as float32 values; ``rotation`` None is the natural basis."""

    #: decodes to Q̂, strip by strip
    q: RowCodes
    scale_O: Tensor
    #: (O, r), None at rank 0
    left_Or: Tensor | None
    #: (r, I), None at rank 0
    right_rI: Tensor | None
    rotation: InputRotation | None

    def dequantize(self) -> Tensor:
        """Ŵ (out_features, in_features)."""
        w_OI = self.q.values()
        if self.left_Or is not None and self.right_rI is not None:
            w_OI = w_OI + self.left_Or @ self.right_rI
        w_OI = w_OI * self.scale_O[:, None]
        return w_OI if self.rotation is None else self.rotation.unrotate(w_OI)


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
        try:
            parts = packed_parts(config, *shape)
        except ConfigError as error:
            raise PackedFormatError(f"metadata of a packed matrix make no sense: {error}") from error
        packed = {name: t.detach().cpu() for name, t in tensors.items()}
        if wrong := set(packed) ^ {part.name for part in parts}:
            raise PackedFormatError(
                f"a {config} matrix of shape {shape} has missing or unknown tensors: {', '.join(sorted(wrong))}"
            )
        for part in parts:
            tensor = packed[part.name]
            if tensor.dtype != TORCH_DTYPES[part.dtype]:
                raise PackedFormatError(f"{part.name} must be {TORCH_DTYPES[part.dtype]}, not {tensor.dtype}")
            if tuple(tensor.shape) != part.shape:
                raise PackedFormatError(
                    f"{part.name} of a {config} matrix of shape {shape} must have shape {part.shape}, not "
                    f"{tuple(tensor.shape)}: the file is truncated or its header lies"
                )
        return cls(config, shape, packed)

    def blob(self) -> Tensor:
        """All packed tensors in the order of ``packed_parts``, without gaps: uint8 (nbytes,)."""
        parts = packed_parts(self.config, *self.shape)
        return torch.cat([self.packed[part.name].contiguous().reshape(-1).view(torch.uint8) for part in parts])

    @classmethod
    def from_blob(cls, blob: Tensor, config: CompressionConfig, shape: tuple[int, int]) -> Self:
        """Inverse of :meth:`blob`; the parts are views of ``blob`` and stay on its device.

        Raises:
            RankTooLarge: the shape cannot have the config's rank.
            PackedFormatError: the blob is no uint8 vector of the config's bytes.
        """
        parts = packed_parts(config, *shape)
        total = sum(part.nbytes for part in parts)
        if blob.dtype != torch.uint8 or tuple(blob.shape) != (total,):
            raise PackedFormatError(
                f"a {config} matrix of shape {shape} is stored as {total} bytes, not as {blob.dtype} "
                f"of shape {tuple(blob.shape)}"
            )
        packed, position = {}, 0
        for part in parts:
            piece = blob[position : position + part.nbytes]
            packed[part.name] = piece.view(TORCH_DTYPES[part.dtype]).reshape(part.shape)
            position += part.nbytes
        return cls(config, shape, packed)

    @torch.no_grad()
    @exact_float32()
    def dequantize(self, *, device: torch.device | str | None = None) -> Tensor:
        """Ŵ (out_features, in_features), float32, on ``device`` (default: CPU)."""
        return self.decode(device=device).dequantize()

    def decode(self, *, device: torch.device | str | None = None) -> DecodedMatrix:
        """All parts on the way to float32 values, still in the rotated basis, on ``device`` (default: CPU)."""
        target = torch.device(device or "cpu")
        packed = {name: t.to(target) for name, t in self.packed.items()}
        out_features, in_features = self.shape
        if self.config.codebook == RAW_CODEBOOK:
            ones_O = torch.ones(out_features, device=target)
            return DecodedMatrix(
                RowCodes(self.shape, self.raw(target), None, self.config.b_q), ones_O, None, None, None
            )
        if self.config.codebook in BASELINE_CODEBOOKS:
            return DecodedMatrix(self._row_codes(packed, None), packed["q_scale"].float(), None, None, None)
        left = right = None
        if self.config.rank:
            left = self._decode_factor(packed, "l", self.config.factor_bits_l, (out_features, self.config.rank))
            right = self._decode_factor(packed, "r", self.config.factor_bits_r, (self.config.rank, in_features))
        scale_O = decode_row_scales(packed["q_rows"], packed["q_scale"])
        rotation = input_rotation(in_features, self.config.seed, target)
        codebook = codebook_for(out_features, self.config.codebook, self.config.b_q, target, self.config.states)
        return DecodedMatrix(self._row_codes(packed, codebook), scale_O, left, right, rotation)

    def raw(self, device: torch.device | str | None = None) -> Tensor:
        """The stored bfloat16 or float16 values (O, I) of a ``raw`` matrix, on ``device`` (default: CPU).

        Raises:
            PackedFormatError: the type that the matrix names does not exist.
        """
        number = int(self.packed["q_type"])
        if number >= len(TYPES):
            raise PackedFormatError(f"a raw matrix has the unknown type {number}: the file is damaged")
        return self.packed["q_values"].view(TYPES[number]).to(torch.device(device or "cpu"))

    def _decode_factor(self, packed: Mapping[str, Tensor], side: str, bits: int, shape: tuple[int, int]) -> Tensor:
        """Values of L or R in units of the row scales, float32."""
        if bits == FLOAT_BITS:
            return packed[f"{side}_values"].reshape(shape).to(torch.float32)
        codes = unpack_bits(packed[f"{side}_codes"], bits, shape[0] * shape[1]).reshape(shape)
        codebook = factor_codebook(shape[0], bits, self.config.codebook, self.config.states, codes.device)
        return decode_factor(codes, packed[f"{side}_scales"], codebook, component_dim=1 if side == "l" else 0)

    def _row_codes(self, packed: Mapping[str, Tensor], codebook: Codebook | None) -> RowCodes:
        rows, columns = self.shape
        bits = self.config.b_q
        if codebook is None or _codes_single_weights(codebook):
            codes_OI = unpack_bits(packed["q_codes"], bits, rows * columns).reshape(rows, columns)
            return RowCodes(self.shape, codes_OI, codebook, bits)
        count, tail = divmod(columns, E8_BLOCK)
        streams = [
            unpack_bits(packed[name], width, rows * count)
            for name, width in zip(("q_codes", "q_residual"), codebook.code_bits, strict=False)
        ]
        codes_OCK = torch.stack([stream.to(torch.int32) for stream in streams], dim=-1)
        codes_OCK = codes_OCK.reshape(rows, count, len(streams))
        if not tail:
            return RowCodes(self.shape, codes_OCK, codebook, bits)
        tail_codes = unpack_bits(packed["q_tail"], bits, rows * tail).reshape(rows, tail)
        scalar = get_codebook("scalar", bits, tail_codes.device)
        return RowCodes(self.shape, codes_OCK, codebook, bits, (tail_codes, scalar))


@lru_cache(maxsize=64)
def input_rotation(in_features: int, seed: int, device: torch.device) -> InputRotation:
    """The rotation of one input, remembered: many layers share it."""
    # tables that inference mode made could not take part in a later backward pass
    with torch.inference_mode(False):
        rotation = InputRotation.make(in_features, seed, device)
        rotation.rotate(torch.zeros(1, in_features, device=device))
    return rotation


def _codes_single_weights(codebook: Codebook) -> bool:
    """Whether each weight has a code of its own, so that codes lie row by row as the weights do."""
    return len(codebook.code_bits) == codebook.block


def pack_q(rounded: Rounded, config: CompressionConfig) -> dict[str, Tensor]:
    """Packed codes of Q from the stages that rounding kept."""
    parts_PIO = rounded.parts_PIO
    device = parts_PIO.device
    stages, columns, rows = parts_PIO.shape
    codebook = codebook_for(rows, config.codebook, config.b_q, device, config.states)
    if _codes_single_weights(codebook):
        codes_OI = torch.empty(rows, columns, dtype=torch.uint8, device=device)
        # a strip at a time: codes are looked up as 64-bit integers
        for strip in even_strips(rows, max(1, _STRIP // columns)):
            codes_OI[strip] = codebook.codes(parts_PIO[:, :, strip].transpose(1, 2))
        return {"q_codes": pack_bits(codes_OI, config.b_q).cpu()}
    count, tail = divmod(columns, E8_BLOCK)
    blocks = parts_PIO[:, : count * E8_BLOCK].reshape(stages, count, E8_BLOCK, rows).permute(0, 3, 1, 2)
    codes = codebook.codes(blocks.reshape(stages, rows * count, E8_BLOCK))
    out = {
        name: pack_bits(codes[:, stage], bits).cpu()
        for stage, (name, bits) in enumerate(zip(("q_codes", "q_residual"), codebook.code_bits, strict=False))
    }
    if tail:
        scalar = get_codebook("scalar", config.b_q, device)
        out["q_tail"] = pack_bits(scalar.codes(parts_PIO[:1, count * E8_BLOCK :]).T, config.b_q).cpu()
    return out


def pack_raw(values_OI: Tensor, config: CompressionConfig) -> CompressedMatrix:
    """A matrix of bfloat16 or float16 values as it is."""
    packed = {
        "q_values": values_OI.cpu().contiguous().view(torch.uint16),
        "q_type": torch.tensor([raw_type(values_OI)], dtype=torch.uint8),
    }
    return CompressedMatrix(config, (values_OI.shape[0], values_OI.shape[1]), packed)


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
