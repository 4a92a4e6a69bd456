"""Bit packing: integers of b bits become exactly ⌈n·b/8⌉ bytes, least significant bit first, no padding between."""

from __future__ import annotations

import torch
from torch import Tensor

#: codes expanded to bits at once while packing; bounds the memory (a multiple of 8)
_CHUNK = 1 << 20
#: codes that begin and end on whole bytes together, whatever their bits
_GROUP = 8
#: bits up to which a group fits into 32 bits
_WORD_BITS = 4


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
    data = packed.reshape(-1)
    if bits == 8:
        return data.to(torch.int32)
    groups = -(-count // _GROUP)
    if missing := groups * bits - data.numel():
        data = torch.nn.functional.pad(data, (0, missing))
    data_GB = data.reshape(groups, bits)
    codes_G8 = _unpack_words(data_GB, bits) if bits <= _WORD_BITS else _unpack_columns(data_GB, bits)
    return codes_G8.reshape(-1)[:count]


def _unpack_words(data_GB: Tensor, bits: int) -> Tensor:
    """Eight codes of a group out of one 32-bit word."""
    word_G = data_GB[:, 0].to(torch.int32)
    for byte in range(1, bits):
        word_G |= data_GB[:, byte].to(torch.int32) << (8 * byte)
    shifts_8 = torch.arange(0, _GROUP * bits, bits, device=data_GB.device, dtype=torch.int32)
    return (word_G[:, None] >> shifts_8).bitwise_and_(2**bits - 1)


def _unpack_columns(data_GB: Tensor, bits: int) -> Tensor:
    """The codes of all groups, one place in the group after another, each out of the bytes that it lies in."""
    bytes_BG = data_GB.T.contiguous().to(torch.int32)
    codes_G8 = torch.empty(data_GB.shape[0], _GROUP, dtype=torch.int32, device=data_GB.device)
    for place in range(_GROUP):
        first, shift = divmod(place * bits, 8)
        code_G = bytes_BG[first] >> shift
        for byte in range(first + 1, (place * bits + bits - 1) // 8 + 1):
            code_G |= bytes_BG[byte] << (8 * (byte - first) - shift)
        torch.bitwise_and(code_G, 2**bits - 1, out=codes_G8[:, place])
    return codes_G8


def _check(bits: int) -> None:
    if not 1 <= bits <= 16:
        raise ValueError(f"integers of 1 to 16 bits can be packed, not {bits}")
