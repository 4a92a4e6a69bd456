"""The search for the best path through a bit-shift trellis, by device.

A trellis of 2^L states takes k bits a step: s_t = ((s_{t−1} << k) | symbol_t) mod 2^L, value_t = table[s_t] (QTIP,
arXiv 2406.11235 §3.1). A tile's symbols are cyclic (tail-biting): the state before the first step is the one after the
last, so that T weights cost exactly T·k bits.

Shapes: N = tiles, T = weights of a tile, S = 2^L states.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

__all__ = ["states_of", "viterbi"]

#: bits that a step of the trellis can take
STEP_BITS = range(1, 9)


def viterbi(x_NT: Tensor, table_S: Tensor, bits: int, weight_NT: Tensor | None = None) -> Tensor:
    """Symbols (N, T) uint8 of the tail-biting path next to each tile; x float32 in units of the table.

    On the CPU numba's kernels; on CUDA Triton's, and plain torch operations where Triton is not installed: the same
    search, several times slower.

    Args:
        weight_NT: what each squared error counts for, ≥ 0; the same for all where None.

    Raises:
        ValueError: x is not (N, T), the table no power of two long, or a step not 1 to 8 bits.
    """
    if x_NT.ndim != 2 or x_NT.shape[1] < 1:
        raise ValueError(f"the tiles must be a matrix (N, T), not {tuple(x_NT.shape)}")
    if weight_NT is not None and weight_NT.shape != x_NT.shape:
        raise ValueError(f"{tuple(weight_NT.shape)} weights do not fit tiles of {tuple(x_NT.shape)}")
    states = table_S.numel()
    if table_S.ndim != 1 or states & (states - 1) or bits not in STEP_BITS or states < 2**bits:
        raise ValueError(f"a trellis of {states} states and {bits} bits a step cannot be")
    if not len(x_NT):
        return torch.empty(x_NT.shape, dtype=torch.uint8, device=x_NT.device)
    if x_NT.device.type == "cpu":
        from compress_core.codebooks.viterbi import cpu

        return cpu.viterbi(x_NT, table_S, bits, weight_NT)
    if x_NT.device.type == "cuda" and find_spec("triton") is not None:
        from compress_core.codebooks.viterbi import triton_ops

        return triton_ops.viterbi_triton(x_NT, table_S, bits, weight_NT)
    from compress_core.codebooks.viterbi import torch_ops

    return torch_ops.viterbi(x_NT, table_S, bits, weight_NT)


def states_of(symbols_NT: Tensor, bits: int, log_states: int) -> Tensor:
    """States (N, T) int32 of cyclic symbols: the last ``log_states`` bits up to and with each symbol."""
    state_NT = torch.zeros_like(symbols_NT, dtype=torch.int32)
    wide_NT = symbols_NT.to(torch.int32)
    for back in range(-(-log_states // bits)):
        state_NT |= wide_NT.roll(back, dims=1) << (back * bits)
    return state_NT & ((1 << log_states) - 1)
