"""Bit packing: integers of b bits become exactly ⌈n·b/8⌉ bytes, least significant bit first, no padding between."""

from __future__ import annotations

import torch
from torch import Tensor

#: codes expanded to bits at once; bounds the memory of the general path (a multiple of 8)
_CHUNK = 1 << 20


def packed_nbytes(count: int, bits: int) -> int:
    """Bytes of ``count`` integers of ``bits`` bits."""
    return (count * bits + 7) // 8


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Pack integers in [0, 2^bits) into uint8 (⌈n·bits/8⌉,); ``values`` is read in row-major order.

    Raises:
        ValueError: bits is not in 1 … 16.
    """
    _check(bits)
    flat = values.reshape(-1).to(torch.int32)
    if bits == 16:
        return torch.stack([flat & 255, flat >> 8], dim=-1).reshape(-1).to(torch.uint8)
    if bits == 8:
        return flat.to(torch.uint8)
    positions = torch.arange(bits, device=flat.device, dtype=torch.int32)
    powers = 2 ** torch.arange(8, device=flat.device, dtype=torch.int32)
    pieces = []
    for chunk in flat.split(_CHUNK):
        bit = ((chunk[:, None] >> positions) & 1).reshape(-1)
        if bit.numel() % 8:
            bit = torch.nn.functional.pad(bit, (0, 8 - bit.numel() % 8))
        pieces.append((bit.reshape(-1, 8) * powers).sum(-1).to(torch.uint8))
    return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.uint8, device=flat.device)


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """Inverse of :func:`pack_bits`: int32 (count,).

    Raises:
        ValueError: bits is not in 1 … 16, or the number of bytes does not fit.
    """
    _check(bits)
    if packed.numel() != packed_nbytes(count, bits):
        raise ValueError(
            f"{count} integers of {bits} bits take {packed_nbytes(count, bits)} bytes, but {packed.numel()} were given"
        )
    data = packed.reshape(-1).to(torch.int32)
    if bits == 16:
        return data[0::2] | (data[1::2] << 8)
    if bits == 8:
        return data
    shifts = torch.arange(8, device=data.device, dtype=torch.int32)
    powers = 2 ** torch.arange(bits, device=data.device, dtype=torch.int32)
    pieces = []
    # a chunk of 8·k bytes holds a whole number of integers whatever the bits
    for start in range(0, count, _CHUNK):
        here = min(_CHUNK, count - start)
        first = start * bits // 8
        bit = ((data[first : first + packed_nbytes(here, bits), None] >> shifts) & 1).reshape(-1)
        pieces.append((bit[: here * bits].reshape(here, bits) * powers).sum(-1).to(torch.int32))
    return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int32, device=data.device)


def _check(bits: int) -> None:
    if not 1 <= bits <= 16:
        raise ValueError(f"integers of 1 to 16 bits can be packed, not {bits}")
