"""The trellis search in plain torch operations, all tiles at once, on any device.

What the tests compare the compiled kernels with, and what CUDA without Triton uses. The search is that of ``cpu``; here
the winning predecessors are noted, a byte for each step and overlap.

Shapes: N = tiles, T = weights of a tile, S = 2^L states, G = 2^(L−k) overlaps, W = steps walked, H = 2^k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress_core.codebooks.viterbi.seam import enumerated, seam_half
from compress_core.codebooks.viterbi.weights import root_weights

_NEVER = 1e30
_FAR = 1e3
#: bytes that noted predecessors, or the costs of one step, may take
_NOTES_BYTES = 2**28


def viterbi(x_NT: Tensor, table_S: Tensor, bits: int, weight_NT: Tensor | None = None) -> Tensor:
    """Symbols (N, T) uint8 of tail-biting paths next to the tiles of x, on x's device."""
    tiles, length = x_NT.shape
    states = table_S.numel()
    log_states = states.bit_length() - 1
    x_NT = x_NT.to(torch.float32).clamp(-_FAR, _FAR)
    root_NT = torch.ones_like(x_NT) if weight_NT is None else root_weights(weight_NT)
    table_S = table_S.to(torch.float32)
    if enumerated(length, bits, log_states):
        return _enumerate(x_NT, root_NT, table_S, bits, log_states)
    half = seam_half(length, bits, log_states)
    at_once = max(_NOTES_BYTES // max((states >> bits) * max(length, 2 * half), 4 * states), 1)
    parts = [
        _tail_biting(x, root, table_S, bits, log_states, half)
        for x, root in zip(x_NT.split(at_once), root_NT.split(at_once), strict=True)
    ]
    return torch.cat(parts) if tiles else torch.empty_like(x_NT, dtype=torch.uint8)


def _tail_biting(x_NT: Tensor, root_NT: Tensor, table_S: Tensor, bits: int, log_states: int, half: int) -> Tensor:
    """The free search across the seam, then the search that starts and ends in its overlap."""
    tiles, length = x_NT.shape
    overlaps = 1 << (log_states - bits)
    window = torch.arange(-half, half, device=x_NT.device) % length
    start_NG = x_NT.new_zeros(tiles, overlaps)
    cost_NG, noted_WNG = _forward(x_NT[:, window], root_NT[:, window], start_NG, table_S, bits)
    _, seam_N = _back(noted_WNG[half:], cost_NG.argmin(1), bits, log_states)
    start_NG = torch.full_like(start_NG, _NEVER).scatter_(1, seam_N[:, None], 0.0)
    _, noted_TNG = _forward(x_NT, root_NT, start_NG, table_S, bits)
    return _back(noted_TNG, seam_N, bits, log_states)[0]


def _forward(x_NW: Tensor, root_NW: Tensor, cost_NG: Tensor, table_S: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Costs (N, G) after all steps, and the h (W, N, G) uint8 that fell out on the cheapest way to each overlap."""
    tiles, steps = x_NW.shape
    symbols = 1 << bits
    noted_WNG = torch.empty((steps, *cost_NG.shape), dtype=torch.uint8, device=x_NW.device)
    for t in range(steps):
        error_NS = (x_NW[:, t : t + 1] - table_S).mul_(root_NW[:, t : t + 1]).square_()
        error_NS += cost_NG.repeat_interleave(symbols, dim=1)
        cost_NG, high_NG = error_NS.reshape(tiles, symbols, -1).min(1)
        noted_WNG[t] = high_NG
    return cost_NG, noted_WNG


def _back(noted_WNG: Tensor, overlap_N: Tensor, bits: int, log_states: int) -> tuple[Tensor, Tensor]:
    """Symbols (N, W) uint8 of the paths that end in ``overlap_N``, and the overlaps (N,) that they started in."""
    steps, tiles, _ = noted_WNG.shape
    symbols_NW = torch.empty((tiles, steps), dtype=torch.uint8, device=noted_WNG.device)
    for t in range(steps - 1, -1, -1):
        high_N = noted_WNG[t].gather(1, overlap_N[:, None])[:, 0].to(torch.int64)
        state_N = (high_N << (log_states - bits)) | overlap_N
        symbols_NW[:, t] = state_N & ((1 << bits) - 1)
        overlap_N = state_N >> bits
    return symbols_NW, overlap_N


def _enumerate(x_NT: Tensor, root_NT: Tensor, table_S: Tensor, bits: int, log_states: int) -> Tensor:
    """Try all symbols of tiles that are shorter than the memory of the trellis."""
    from compress_core.codebooks.viterbi import states_of

    length = x_NT.shape[1]
    shifts = torch.arange(length - 1, -1, -1, device=x_NT.device) * bits
    every = torch.arange(1 << (length * bits), device=x_NT.device)
    symbols_MT = ((every[:, None] >> shifts) & ((1 << bits) - 1)).to(torch.uint8)
    values_MT = table_S[states_of(symbols_MT, bits, log_states).long()]
    best_N = [((x - values_MT) * root).square().sum(1).argmin() for x, root in zip(x_NT, root_NT, strict=True)]
    return symbols_MT[torch.stack(best_N)]
