"""Viterbi search of the bit-shift trellis on CUDA: one Triton launch for any number of tiles.

The trellis is QTIP's (arXiv 2406.11235 §3): s_t = ((s_{t−1} << k) | symbol_t) mod 2^L, value_t = table[s_t]. The 2^k
predecessors of a state share its high bits, so the states fall into 2^(L−k) *groups* by their low L−k bits, and all a
step has to know is the cheapest path into each group:

    best_t[g] = min over h of best_{t−1}[(h·2^(L−k) + g) >> k] + (x_t − table[h·2^(L−k) + g])²

One program walks one tile, step after step, and keeps the h of each minimum in global scratch. Up to
``RESIDENT_STATES`` states ``best`` and the table stay in registers, and a step moves only ``best`` through shared
memory; beyond that ``best`` lies in two halves of a scratch buffer in global memory (L2) and is relaxed in chunks.

Tail-biting in the same launch: a free pass over a window around the seam finds the state that the path crosses it in,
a second pass starts and ends there.

Shapes: N = tiles, T = weights a tile, S = 2^L states, G = S / 2^k groups, K = 2^k symbols.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

#: up to here the table and the costs live in registers
RESIDENT_STATES = 1 << 12
#: the largest table; 2^16 states need 2^(16−k) bytes of backpointers a weight
MAX_STATES = 1 << 16
#: scratch memory a launch may take: beyond it a program walks several tiles one after another
SCRATCH_BYTES = 1 << 30
#: groups that one program relaxes at a time when they do not fit its registers
_CHUNK = 4096
#: states a thread takes care of, at most; 16 warps a program, so that two programs share a multiprocessor
_STATES_PER_THREAD = 8
_MAX_WARPS = 16


@triton.jit
def _walk(
    best_G: Any,
    x_ptr: Any,
    table_ptr: Any,
    cost_ptr: Any,
    back_ptr: Any,
    first: Any,
    steps: Any,
    kept: Any,
    length: Any,
    BITS: tl.constexpr,
    GROUPS: tl.constexpr,
    CHUNK: tl.constexpr,
    RESIDENT: tl.constexpr,
) -> Any:
    """Relax ``steps`` steps from position ``first`` on, cyclically; returns the last ``best``.

    The last ``kept`` steps leave their backpointers in rows 0 … kept−1 of ``back_ptr``.
    """
    SYMBOLS: tl.constexpr = 1 << BITS
    group_G = tl.arange(0, GROUPS)
    if RESIDENT:
        table_GK = tl.load(table_ptr + group_G[:, None] * SYMBOLS + tl.arange(0, SYMBOLS)[None, :])
    else:
        tl.store(cost_ptr + group_G, best_G)
        tl.debug_barrier()
    for step in range(steps):
        position = first + step
        position = tl.where(position >= length, position - length, position)
        x = tl.load(x_ptr + position)
        # steps before the kept ones overwrite one another in row 0
        row_ptr = back_ptr + tl.maximum(step + kept - steps, 0) * GROUPS
        if RESIDENT:
            miss_GK = x - table_GK
            cost_GK = best_G[:, None] + miss_GK * miss_GK
            # state = g·K + symbol read again as h·G + g'
            best_G, high_G = tl.min(tl.reshape(cost_GK, [SYMBOLS, GROUPS]), axis=0, return_indices=True)
            tl.store(row_ptr + group_G, high_G.to(tl.uint8))
        else:
            from_ptr = cost_ptr + (step & 1) * GROUPS
            to_ptr = cost_ptr + (1 - (step & 1)) * GROUPS
            for start in range(0, GROUPS, CHUNK):
                group_C = start + tl.arange(0, CHUNK)
                best_C = tl.full([CHUNK], float("inf"), tl.float32)
                high_C = tl.zeros([CHUNK], tl.int32)
                for high in tl.range(0, SYMBOLS, loop_unroll_factor=4):
                    state_C = high * GROUPS + group_C
                    miss_C = x - tl.load(table_ptr + state_C)
                    cost_C = tl.load(from_ptr + (state_C >> BITS)) + miss_C * miss_C
                    high_C = tl.where(cost_C < best_C, high, high_C)
                    best_C = tl.minimum(cost_C, best_C)
                tl.store(to_ptr + group_C, best_C)
                tl.store(row_ptr + group_C, high_C.to(tl.uint8))
            # the next step reads what other threads wrote
            tl.debug_barrier()
    if not RESIDENT:
        best_G = tl.load(cost_ptr + (steps & 1) * GROUPS + group_G)
    # the backtrace reads backpointers that other threads wrote
    tl.debug_barrier()
    return best_G


@triton.jit(do_not_specialize=["tiles", "length", "window", "rows"])
def _search(
    symbols_ptr: Any,
    x_ptr: Any,
    table_ptr: Any,
    cost_ptr: Any,
    back_ptr: Any,
    tiles: Any,
    length: Any,
    window: Any,
    rows: Any,
    BITS: tl.constexpr,
    GROUPS: tl.constexpr,
    CHUNK: tl.constexpr,
    RESIDENT: tl.constexpr,
) -> None:
    """Symbols of the tiles program, program + programs, …; each program has scratch of its own."""
    program = tl.program_id(0).to(tl.int64)
    cost_ptr += program * 2 * GROUPS
    back_ptr += program * rows * GROUPS
    group_G = tl.arange(0, GROUPS)
    for turn in range(tl.cdiv(tiles - tl.program_id(0), tl.num_programs(0))):
        tile = program + turn * tl.num_programs(0)
        tile_x_ptr = x_ptr + tile * length
        tile_symbols_ptr = symbols_ptr + tile * length

        # free pass: window steps before the seam, window steps after it
        best_G = tl.zeros([GROUPS], tl.float32)
        best_G = _walk(
            best_G, tile_x_ptr, table_ptr, cost_ptr, back_ptr,
            length - window, 2 * window, window + 1, length, BITS, GROUPS, CHUNK, RESIDENT,
        )  # fmt: skip
        group = tl.argmin(best_G, axis=0)
        for i in range(window):
            high = tl.load(back_ptr + (window - i) * GROUPS + group).to(tl.int32)
            group = (high * GROUPS + group) >> BITS
        seam = tl.load(back_ptr + group).to(tl.int32) * GROUPS + group
        tl.debug_barrier()

        # constrained pass: from the seam's state to itself; the last step is given
        best_G = tl.where(group_G == seam % GROUPS, 0.0, float("inf"))
        _walk(
            best_G, tile_x_ptr, table_ptr, cost_ptr, back_ptr,
            0, length - 1, length - 1, length, BITS, GROUPS, CHUNK, RESIDENT,
        )  # fmt: skip
        state = seam
        tl.store(tile_symbols_ptr + length - 1, (state & ((1 << BITS) - 1)).to(tl.uint8))
        for i in range(length - 1):
            step = length - 2 - i
            group = state >> BITS
            state = tl.load(back_ptr + step * GROUPS + group).to(tl.int32) * GROUPS + group
            tl.store(tile_symbols_ptr + step, (state & ((1 << BITS) - 1)).to(tl.uint8))
        # the next tile overwrites the backpointers
        tl.debug_barrier()


def viterbi_triton(x_NT: Tensor, table_S: Tensor, bits: int, window: int | None = None) -> Tensor:
    """Symbols (N, T) uint8 of a tail-biting path next to each tile, on the tiles' CUDA device, without a host sync.

    Args:
        x_NT: tiles, float32, unit scale.
        table_S: value of each state, float32; a power of two of them, at most ``MAX_STATES``.
        bits: k, bits a weight, 1 to 8.
        window: steps that the free pass walks on each side of the seam; half the tile where None.

    Raises:
        ValueError: sizes that make no trellis, or tiles too short to hold one state (T·k < L).
    """
    tiles, length = x_NT.shape
    states = table_S.numel()
    log_states = states.bit_length() - 1
    if states != 1 << log_states or states > MAX_STATES:
        raise ValueError(f"a trellis has 2 to {MAX_STATES} states, a power of two, not {states}")
    if not 1 <= bits <= min(8, log_states):
        raise ValueError(f"a trellis of {states} states takes 1 to {min(8, log_states)} bits a step, not {bits}")
    if length * bits < log_states:
        raise ValueError(f"{length} weights of {bits} bits cannot hold one of {states} states")
    half = length // 2 if window is None else min(window, length // 2)
    return _launch(x_NT, table_S, bits, max(half, 1), states <= RESIDENT_STATES)


def _launch(x_NT: Tensor, table_S: Tensor, bits: int, window: int, resident: bool) -> Tensor:
    """One launch; ``resident`` picks where the costs live."""
    tiles, length = x_NT.shape
    symbols_NT = torch.empty(tiles, length, dtype=torch.uint8, device=x_NT.device)
    if tiles == 0:
        return symbols_NT
    states = table_S.numel()
    groups = states >> bits
    rows = max(length, window + 1)
    room = max(1, SCRATCH_BYTES // (groups * (rows + 8)))
    rounds = triton.cdiv(tiles, room)
    programs = triton.cdiv(tiles, rounds)  # as many tiles for each program, up to one
    cost = torch.empty(0 if resident else programs * 2 * groups, dtype=torch.float32, device=x_NT.device)
    back = torch.empty(programs * rows * groups, dtype=torch.uint8, device=x_NT.device)
    warps = min(_MAX_WARPS, max(1, states // (32 * _STATES_PER_THREAD)))
    _search[(programs,)](
        symbols_NT,
        x_NT.to(torch.float32).contiguous(),
        table_S.to(torch.float32).contiguous(),
        cost,
        back,
        tiles,
        length,
        window,
        rows,
        BITS=bits,
        GROUPS=groups,
        CHUNK=min(groups, _CHUNK),
        RESIDENT=resident,
        num_warps=warps,
    )
    return symbols_NT
