"""Find NaN and infinity in raw tensor bytes: their exponent bits are all ones. Torch-free."""

from __future__ import annotations

import numpy as np

from compress_core.checkpoint.headers import TensorHeader
from compress_core.errors import NonFiniteValues

#: bit patterns of NaN and infinity: x & mask == mask (F8_E4M3 has no infinity, and one NaN of each sign)
_EXPONENTS: dict[str, np.unsignedinteger] = {
    "F8_E4M3": np.uint8(0x7F),
    "F8_E5M2": np.uint8(0x7C),
    "F16": np.uint16(0x7C00),
    "BF16": np.uint16(0x7F80),
    "F32": np.uint32(0x7F800000),
    "F64": np.uint64(0x7FF0000000000000),
}
#: values that are looked at together: what is in between stays in the processor's cache
_AT_ONCE = 1 << 16


def count_non_finite(data: bytes | bytearray | memoryview, dtype: str) -> int:
    """NaN and infinite values among little-endian values of a safetensors dtype; 0 for whole numbers."""
    mask = _EXPONENTS.get(dtype)
    if mask is None:
        return 0
    bits = np.frombuffer(data, dtype=mask.dtype.newbyteorder("<"))
    found = 0
    for begin in range(0, bits.size, _AT_ONCE):
        exponents = bits[begin : begin + _AT_ONCE] & mask
        if exponents.max() == mask:
            found += int(np.count_nonzero(exponents == mask))
    return found


def refuse_non_finite(tensor: TensorHeader, n_bad: int) -> None:
    """Nothing where ``n_bad`` is 0.

    Raises:
        NonFiniteValues: names tensor, file, and how many values are affected.
    """
    if n_bad:
        n_values = tensor.nbytes // _EXPONENTS[tensor.dtype].itemsize
        raise NonFiniteValues(
            f"tensor {tensor.name} in {tensor.file} holds {n_bad} NaN or infinite values of {n_values}: "
            "the checkpoint is damaged; a retry cannot help, take a sound copy"
        )
