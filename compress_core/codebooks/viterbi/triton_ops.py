"""The trellis search on CUDA: one Triton launch for any number of tiles.

The same search as on the CPU. A step keeps the cheapest cost of reaching each *overlap*, the L − k bits that two
neighbouring states share:

    best_{t+1}[g] = min over h of best_t[s >> k] + (root_t·(x_t − table[s]))²,  s = h·2^(L−k) + g

One program walks a tile step after step and notes each winning h in scratch memory. While a program's registers hold
them (``RESIDENT_STATES``), costs and table stay there, and a step moves only ``best`` between threads; with more
states ``best`` lies in two halves of a scratch buffer that the L2 cache keeps, and is relaxed chunk by chunk.

The free pass across the seam, the pass that starts and ends in the overlap found there, and both ways back are one
launch. Nothing waits for the host, and each tile's bytes are the same whatever is searched beside it.

Triton compiles its driver's launcher on first use, so the machine with the card needs a C compiler (``CC``).

Shapes: N = tiles, T = weights of a tile, S = 2^L states, G = 2^(L−k) overlaps, C = overlaps of a chunk, K = 2^k
symbols.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from compress_core.codebooks.viterbi import torch_ops
from compress_core.codebooks.viterbi.seam import enumerated, seam_half
from compress_core.codebooks.viterbi.weights import root_weights

#: with up to this many states a program's costs and table live in registers
RESIDENT_STATES = 1 << 14
#: scratch memory of a launch, bytes: where the tiles need more, each program walks several of them in turn
SCRATCH_BYTES = 1 << 30
#: overlaps that a program relaxes at a time when they do not live in registers
_CHUNK = 2048
#: weights beyond this many deviations count as that far: squares stay within float32
_FAR = 1e3


@triton.jit
def _walk(
    best_G: tl.tensor,
    x_ptr: tl.tensor,
    root_ptr: tl.tensor,
    table_ptr: tl.tensor,
    cost_ptr: tl.tensor,
    back_ptr: tl.tensor,
    length: tl.tensor,
    first: tl.tensor,
    steps: tl.tensor,
    unkept: tl.tensor,
    WEIGHTED: tl.constexpr,
    BITS: tl.constexpr,
    OVERLAPS: tl.constexpr,
    CHUNK: tl.constexpr,
    RESIDENT: tl.constexpr,
) -> tl.tensor:
    """Relax ``steps`` cyclic steps from weight ``first`` on; returns ``best`` after the last.

    Step ``unkept`` + i leaves its backpointers in row i of ``back_ptr``; the steps before leave nothing of use.
    """
    SYMBOLS: tl.constexpr = 1 << BITS
    overlap_G = tl.arange(0, OVERLAPS)
    if RESIDENT:
        table_GK = tl.load(table_ptr + overlap_G[:, None] * SYMBOLS + tl.arange(0, SYMBOLS)[None, :])
    else:
        tl.store(cost_ptr + overlap_G, best_G)
        tl.debug_barrier()
    for step in range(steps):
        position = (first + step) % length
        x = tl.load(x_ptr + position)
        if WEIGHTED:
            root = tl.load(root_ptr + position)
        row_ptr = back_ptr + tl.maximum(step - unkept, 0) * OVERLAPS
        if RESIDENT:
            miss_GK = x - table_GK
            if WEIGHTED:
                miss_GK *= root
            cost_GK = best_G[:, None] + miss_GK * miss_GK
            # a state is (overlap before, symbol) and, the same bits cut elsewhere, (h, overlap after)
            best_G, high_G = tl.min(tl.reshape(cost_GK, [SYMBOLS, OVERLAPS]), axis=0, return_indices=True)
            tl.store(row_ptr + overlap_G, high_G.to(tl.uint8))
        else:
            from_ptr = cost_ptr + (step & 1) * OVERLAPS
            to_ptr = cost_ptr + (1 - (step & 1)) * OVERLAPS
            for start in range(0, OVERLAPS, CHUNK):
                overlap_C = start + tl.arange(0, CHUNK)
                best_C = tl.full([CHUNK], float("inf"), tl.float32)
                high_C = tl.zeros([CHUNK], tl.int32)
                for high in tl.range(0, SYMBOLS, loop_unroll_factor=4):
                    state_C = high * OVERLAPS + overlap_C
                    miss_C = x - tl.load(table_ptr + state_C)
                    if WEIGHTED:
                        miss_C *= root
                    cost_C = tl.load(from_ptr + (state_C >> BITS)) + miss_C * miss_C
                    high_C = tl.where(cost_C < best_C, high, high_C)
                    best_C = tl.minimum(cost_C, best_C)
                tl.store(to_ptr + overlap_C, best_C)
                tl.store(row_ptr + overlap_C, high_C.to(tl.uint8))
            # the next step reads what other threads wrote
            tl.debug_barrier()
    if not RESIDENT:
        best_G = tl.load(cost_ptr + (steps & 1) * OVERLAPS + overlap_G)
    # the way back reads what other threads wrote
    tl.debug_barrier()
    return best_G


@triton.jit(do_not_specialize=["tiles", "length", "half"])
def _search(
    symbols_ptr: tl.tensor,
    x_ptr: tl.tensor,
    root_ptr: tl.tensor,
    table_ptr: tl.tensor,
    cost_ptr: tl.tensor,
    back_ptr: tl.tensor,
    tiles: tl.tensor,
    length: tl.tensor,
    half: tl.tensor,
    WEIGHTED: tl.constexpr,
    BITS: tl.constexpr,
    OVERLAPS: tl.constexpr,
    CHUNK: tl.constexpr,
    RESIDENT: tl.constexpr,
) -> None:
    """Symbols of every tile; program p takes tiles p, p + programs, … with scratch of its own."""
    program = tl.program_id(0).to(tl.int64)
    cost_ptr += program * 2 * OVERLAPS
    back_ptr += program * tl.maximum(length, half) * OVERLAPS
    overlap_G = tl.arange(0, OVERLAPS)
    for turn in range(tl.cdiv(tiles - tl.program_id(0), tl.num_programs(0))):
        tile = program + turn * tl.num_programs(0)
        x_T_ptr = x_ptr + tile * length
        root_T_ptr = root_ptr + tile * length
        symbols_T_ptr = symbols_ptr + tile * length

        # the free search across the seam: its overlap there
        free_G = _walk(
            tl.zeros([OVERLAPS], tl.float32), x_T_ptr, root_T_ptr, table_ptr, cost_ptr, back_ptr,
            length, (half // length + 1) * length - half, 2 * half, half, WEIGHTED, BITS, OVERLAPS, CHUNK, RESIDENT,
        )  # fmt: skip
        overlap = tl.argmin(free_G, axis=0)
        for back in range(half):
            high = tl.load(back_ptr + (half - 1 - back) * OVERLAPS + overlap).to(tl.int32)
            overlap = (high * OVERLAPS + overlap) >> BITS
        tl.debug_barrier()

        # the search that starts and ends in it
        _walk(
            tl.where(overlap_G == overlap, 0.0, float("inf")), x_T_ptr, root_T_ptr, table_ptr, cost_ptr, back_ptr,
            length, 0, length, 0, WEIGHTED, BITS, OVERLAPS, CHUNK, RESIDENT,
        )  # fmt: skip
        for back in range(length):
            step = length - 1 - back
            state = tl.load(back_ptr + step * OVERLAPS + overlap).to(tl.int32) * OVERLAPS + overlap
            tl.store(symbols_T_ptr + step, (state & ((1 << BITS) - 1)).to(tl.uint8))
            overlap = state >> BITS
        # the next tile overwrites the backpointers
        tl.debug_barrier()


def viterbi_triton(x_NT: Tensor, table_S: Tensor, bits: int, weight_NT: Tensor | None = None) -> Tensor:
    """Symbols (N, T) uint8 of tail-biting paths next to the tiles of x; all tensors on one CUDA device.

    Args:
        weight_NT: what each squared error counts for, ≥ 0; the same for all where None.
    """
    states = table_S.numel()
    if enumerated(x_NT.shape[1], bits, states.bit_length() - 1):
        # a handful of weights, tried in all ways: nothing to walk
        return torch_ops.viterbi(x_NT, table_S, bits, weight_NT)
    return _launch(x_NT, table_S, bits, weight_NT, resident=states <= RESIDENT_STATES)


def _warps(states: int, bits: int, resident: bool) -> int:
    """Warps of a program.

    In registers a thread holds four neighbouring states of each h (as the table is loaded), so that the minimum over h
    needs no other thread: 128 overlaps a warp. It never holds more than 64 states, twice 64 registers of costs and
    table. Out of registers, all threads that a program can have hide the latency of the cache.
    """
    return min(16, max(1, (states >> bits) // 128, states // 2048)) if resident else 32


def _launch(
    x_NT: Tensor,
    table_S: Tensor,
    bits: int,
    weight_NT: Tensor | None = None,
    *,
    resident: bool,
    scratch_bytes: int = SCRATCH_BYTES,
) -> Tensor:
    """The launch; ``resident``: costs and table in registers."""
    tiles, length = x_NT.shape
    device = x_NT.device
    symbols_NT = torch.empty(tiles, length, dtype=torch.uint8, device=device)
    if tiles == 0:
        return symbols_NT
    states = table_S.numel()
    overlaps = states >> bits
    half = seam_half(length, bits, states.bit_length() - 1)
    x_NT = x_NT.to(torch.float32).clamp(-_FAR, _FAR).contiguous()
    # one program a tile, or as many as have room, with equally many turns each
    rows = max(length, half)
    room = max(1, scratch_bytes // (overlaps * (rows + 8)))
    programs = triton.cdiv(tiles, triton.cdiv(tiles, room))
    # an argument that the kernel leaves alone is some tensor of the right type
    cost = x_NT if resident else torch.empty(programs * 2 * overlaps, dtype=torch.float32, device=device)
    back = torch.empty(programs * rows * overlaps, dtype=torch.uint8, device=device)
    with torch.cuda.device_of(x_NT):
        _search[(programs,)](
            symbols_NT,
            x_NT,
            x_NT if weight_NT is None else root_weights(weight_NT).contiguous(),
            table_S.to(torch.float32).contiguous(),
            cost,
            back,
            tiles,
            length,
            half,
            WEIGHTED=weight_NT is not None,
            BITS=bits,
            OVERLAPS=overlaps,
            CHUNK=min(overlaps, _CHUNK),
            RESIDENT=resident,
            num_warps=_warps(states, bits, resident),
            enable_fp_fusion=True,
        )
    return symbols_NT
