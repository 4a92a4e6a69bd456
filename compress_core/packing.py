"""Bit packing: integers of b bits become exactly ⌈n·b/8⌉ bytes, least significant bit first, no padding between."""

from __future__ import annotations

import torch
from torch import Tensor

#: codes that begin and end on whole bytes together, whatever their bits
_GROUP = 8
#: groups that are packed or unpacked at once
_STRIP = 1 << 16
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
    groups = -(-flat.numel() // _GROUP)
    if missing := groups * _GROUP - flat.numel():
        flat = torch.nn.functional.pad(flat, (0, missing))
    packed_GB = torch.empty(groups, bits, dtype=torch.uint8, device=flat.device)
    # strips whose temporaries stay in the cache
    for codes_G8, into_GB in zip(flat.reshape(groups, _GROUP).split(_STRIP), packed_GB.split(_STRIP), strict=True):
        _pack_group(codes_G8.T.contiguous(), bits, into_GB)
    return packed_GB.reshape(-1)[: packed_nbytes(values.numel(), bits)]


def _pack_group(codes_8G: Tensor, bits: int, into_GB: Tensor) -> None:
    """The bytes of all groups, one place in the group after another, each out of the codes that reach into it."""
    for byte in range(bits):
        total_G = torch.zeros_like(codes_8G[0])
        for place in range(8 * byte // bits, -(-8 * (byte + 1) // bits)):
            shift = place * bits - 8 * byte
            total_G |= codes_8G[place] << shift if shift >= 0 else codes_8G[place] >> -shift
        into_GB[:, byte] = total_G.bitwise_and_(255)


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """Inverse of :func:`pack_bits`: (count,), uint8 up to 8 bits and int32 above.

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
        return data
    if bits == 16:
        data_N2 = data.reshape(-1, 2).to(torch.int32)
        return data_N2[:, 0] | (data_N2[:, 1] << 8)
    groups = -(-count // _GROUP)
    if missing := groups * bits - data.numel():
        data = torch.nn.functional.pad(data, (0, missing))
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, device=data.device, dtype=torch.uint8)
        return (data[:, None] >> shifts).bitwise_and_(2**bits - 1).reshape(-1)[:count]
    dtype = torch.uint8 if bits < 8 else torch.int32
    codes_G8 = torch.empty(groups, _GROUP, dtype=dtype, device=data.device)
    unpack = _unpack_words if bits <= _WORD_BITS else _unpack_columns
    # strips whose temporaries stay in the cache
    for strip_GB, into_G8 in zip(data.reshape(groups, bits).split(_STRIP), codes_G8.split(_STRIP), strict=True):
        unpack(strip_GB, bits, into_G8)
    return codes_G8.reshape(-1)[:count]


def _unpack_words(data_GB: Tensor, bits: int, into_G8: Tensor) -> None:
    """Eight codes of a group out of one 32-bit word."""
    word_G = data_GB[:, 0].to(torch.int32)
    for byte in range(1, bits):
        word_G |= data_GB[:, byte].to(torch.int32) << (8 * byte)
    shifts_8 = torch.arange(0, _GROUP * bits, bits, device=data_GB.device, dtype=torch.int32)
    into_G8.copy_((word_G[:, None] >> shifts_8).bitwise_and_(2**bits - 1))


def _unpack_columns(data_GB: Tensor, bits: int, into_G8: Tensor) -> None:
    """The codes of all groups, one place in the group after another, each out of the bytes that it lies in."""
    bytes_BG = data_GB.T.contiguous().to(torch.int32)
    for place in range(_GROUP):
        first, shift = divmod(place * bits, 8)
        code_G = bytes_BG[first] >> shift
        for byte in range(first + 1, (place * bits + bits - 1) // 8 + 1):
            code_G |= bytes_BG[byte] << (8 * (byte - first) - shift)
        into_G8[:, place] = code_G.bitwise_and_(2**bits - 1)


def _check(bits: int) -> None:
    if not 1 <= bits <= 16:
        raise ValueError(f"integers of 1 to 16 bits can be packed, not {bits}")
