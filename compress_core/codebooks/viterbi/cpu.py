"""The trellis search on the CPU: numba kernels, one tile at a time in the nearest cache.

Two states that follow each other share an *overlap* of L − k bits. Only the cheapest cost of reaching each overlap is
kept: m_{t+1}[g'] = min_h m_t[s >> k] + (x_t − table[s])² with s = (h << (L − k)) | g', h the k bits that fall out.
Nothing is noted about which h won: m of every step is kept, and the way back computes the 2^k candidates anew.

Three orders of the same loops, so that the innermost one is always contiguous and free of index arithmetic:
*spread* (k = 2 or 3: overlaps with equal last symbol together, then interleaved), *chunks* (of 8 or 16 neighbouring
overlaps, which share m), and *runs* (fewer overlaps: the minimum runs over h).

A weight that counts w times has √w·x and √w·table compared, which costs nothing: a − b and a − w·b are one instruction.

The kernels hold no GIL. Tiles are independent, so the bytes do not depend on the number of threads.

Shapes: N = tiles, T = weights of a tile, S = 2^L states, G = 2^(L−k) overlaps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from compress_core.codebooks.tiles import TileGroup
from compress_core.codebooks.viterbi.seam import enumerated, seam_half
from compress_core.codebooks.viterbi.weights import root_weights

# No reassociation: sums keep their order, so results do not depend on how a loop was vectorised
_FAST = {"nnan", "ninf", "nsz", "contract"}
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "fastmath": _FAST,
    "error_model": "numpy",
    "boundscheck": False,
}
# inlined, so that sizes are constants of the loops and arrays need not be handed over a step
_INLINE = {**_OPTIONS, "forceinline": True}
#: costs of what cannot be; finite, because the kernels are compiled without infinities
_NEVER = np.float32(1e30)
#: weights beyond this many deviations count as that far: squares stay within float32
_FAR = np.float32(1e3)
_PAIRS, _TRIPLES, _SIXTEENS, _EIGHTS, _RUNS = range(5)
#: fewer weights than this are not worth a second thread
_WEIGHTS_PER_THREAD = 2048
# unsigned indices: numba then leaves out the test for negative ones, and LLVM sees the strides
_U1, _U2, _U3, _U4 = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
_U5, _U6, _U7, _U8 = np.uint64(5), np.uint64(6), np.uint64(7), np.uint64(8)


@njit(**_INLINE)
def _best_of_four(x, root, m0, m1, m2, m3, r0, r1, r2, r3, out, count, first):  # type: ignore[no-untyped-def]
    """out[i] = min over four (m[i] + (x − root·r[i])²), and over what out holds unless ``first``."""
    for i in range(count):
        d0, d1, d2, d3 = x - root * r0[i], x - root * r1[i], x - root * r2[i], x - root * r3[i]
        a, b = m0[i] + d0 * d0, m1[i] + d1 * d1
        c, d = m2[i] + d2 * d2, m3[i] + d3 * d3
        a = a if a < b else b
        c = c if c < d else d
        a = a if a < c else c
        if not first:
            o = out[i]
            a = a if a < o else o
        out[i] = a


@njit(**_INLINE)
def _step_pairs(x, root, m, out, scratch, table, count):  # type: ignore[no-untyped-def]
    """One step, k = 2; table (last symbol, h, rest), scratch (last symbol, rest), ``count`` = 2^(L−4) rests."""
    m0, m1, m2, m3 = m[:count], m[count : 2 * count], m[2 * count : 3 * count], m[3 * count :]
    for j in range(4):
        r = table[j]
        _best_of_four(x, root, m0, m1, m2, m3, r[0], r[1], r[2], r[3], scratch[j], count, True)
    t0, t1, t2, t3 = scratch[0], scratch[1], scratch[2], scratch[3]
    for i in range(np.uint64(count)):
        p = i * _U4
        out[p], out[p + _U1], out[p + _U2], out[p + _U3] = t0[i], t1[i], t2[i], t3[i]


@njit(**_INLINE)
def _step_triples(x, root, m, out, scratch, table, count):  # type: ignore[no-untyped-def]
    """One step, k = 3; table (last symbol, h, rest), scratch (last symbol, rest), ``count`` = 2^(L−6) rests."""
    m0, m1, m2, m3 = m[:count], m[count : 2 * count], m[2 * count : 3 * count], m[3 * count : 4 * count]
    m4, m5 = m[4 * count : 5 * count], m[5 * count : 6 * count]
    m6, m7 = m[6 * count : 7 * count], m[7 * count :]
    for j in range(8):
        r = table[j]
        _best_of_four(x, root, m0, m1, m2, m3, r[0], r[1], r[2], r[3], scratch[j], count, True)
        _best_of_four(x, root, m4, m5, m6, m7, r[4], r[5], r[6], r[7], scratch[j], count, False)
    t0, t1, t2, t3 = scratch[0], scratch[1], scratch[2], scratch[3]
    t4, t5, t6, t7 = scratch[4], scratch[5], scratch[6], scratch[7]
    for i in range(np.uint64(count)):
        p = i * _U8
        out[p], out[p + _U1], out[p + _U2], out[p + _U3] = t0[i], t1[i], t2[i], t3[i]
        out[p + _U4], out[p + _U5], out[p + _U6], out[p + _U7] = t4[i], t5[i], t6[i], t7[i]


@njit(**_INLINE)
def _step_chunks(x, root, m, out, table, bits, overlaps, chunk):  # type: ignore[no-untyped-def]
    """One step; ``chunk`` divides 2^k and the number of overlaps; table (h, overlap)."""
    for low in range(0, overlaps, chunk):
        best = out[low : low + chunk]
        for h in range(0, 1 << bits, 4):
            state = h * overlaps + low
            m0, m1 = m[state >> bits], m[(state + overlaps) >> bits]
            m2, m3 = m[(state + 2 * overlaps) >> bits], m[(state + 3 * overlaps) >> bits]
            r0, r1 = table[h, low : low + chunk], table[h + 1, low : low + chunk]
            r2, r3 = table[h + 2, low : low + chunk], table[h + 3, low : low + chunk]
            for i in range(chunk):
                d0, d1, d2, d3 = x - root * r0[i], x - root * r1[i], x - root * r2[i], x - root * r3[i]
                a, b = m0 + d0 * d0, m1 + d1 * d1
                c, d = m2 + d2 * d2, m3 + d3 * d3
                a = a if a < b else b
                c = c if c < d else d
                a = a if a < c else c
                if h > 0:
                    o = best[i]
                    a = a if a < o else o
                best[i] = a


@njit(**_INLINE)
def _step_runs(x, root, m, out, table, bits, overlaps):  # type: ignore[no-untyped-def]
    """One step, any k; table (overlap, h)."""
    symbols = 1 << bits
    run = max(symbols // overlaps, 1)  # neighbouring h with one m
    for g in range(overlaps):
        row = table[g]
        best = _NEVER
        for low in range(0, symbols, run):
            part = row[low : low + run]
            least = _NEVER
            for i in range(run):
                d = x - root * part[i]
                e = d * d
                least = e if e < least else least
            cost = m[(low * overlaps + g) >> bits] + least
            best = cost if cost < best else best
        out[g] = best


@njit(**_OPTIONS)
def _forward(x_T, root_T, first, steps, m_TG, scratch, ordered, order, bits, log_states):  # type: ignore[no-untyped-def]
    """Fill m_TG[1:] from m_TG[0] over ``steps`` cyclic weights from ``first`` on."""
    overlaps = 1 << (log_states - bits)
    length = x_T.shape[0]
    for t in range(steps):
        at = (first + t) % length
        x, root, m, out = x_T[at] * root_T[at], root_T[at], m_TG[t], m_TG[t + 1]
        if order == _PAIRS:
            _step_pairs(x, root, m, out, scratch, ordered, overlaps >> 2)
        elif order == _TRIPLES:
            _step_triples(x, root, m, out, scratch, ordered, overlaps >> 3)
        elif order == _SIXTEENS:
            _step_chunks(x, root, m, out, ordered[0], bits, overlaps, 16)
        elif order == _EIGHTS:
            _step_chunks(x, root, m, out, ordered[0], bits, overlaps, 8)
        else:
            _step_runs(x, root, m, out, ordered[0], bits, overlaps)


@njit(**_INLINE)
def _previous(x, root, m, g, table, bits, log_states):  # type: ignore[no-untyped-def]
    """The state through which the cheapest path came to overlap ``g``."""
    shift = log_states - bits
    best, found = np.float32(2 * _NEVER), g
    for h in range(1 << bits):
        state = (h << shift) | g
        d = x - root * table[state]
        cost = m[state >> bits] + d * d
        if cost < best:
            best, found = cost, state
    return found


@njit(**_OPTIONS)
def _enumerate(x_T, root_T, table, bits, log_states, out_T):  # type: ignore[no-untyped-def]
    """Try all symbols of a tile that is shorter than the memory of the trellis."""
    length = x_T.shape[0]
    total = length * bits
    mask = (1 << log_states) - 1
    best, found = np.float32(2 * _NEVER), 0
    for code in range(1 << total):
        state = 0
        for _ in range(0, log_states, total):  # the cycle as often as the state has room for
            state = ((state << total) | code) & mask
        cost = np.float32(0)
        for t in range(length):
            symbol = (code >> (total - (t + 1) * bits)) & ((1 << bits) - 1)
            state = ((state << bits) | symbol) & mask
            d = root_T[t] * (x_T[t] - table[state])
            cost += d * d
        if cost < best:
            best, found = cost, code
    for t in range(length):
        out_T[t] = (found >> (total - (t + 1) * bits)) & ((1 << bits) - 1)


@njit(**_OPTIONS)
def _tail_biting(x_T, root_T, m_TG, scratch, table, ordered, order, bits, log_states, half, out_T):  # type: ignore[no-untyped-def]
    """The free search across the seam, then the search that starts and ends in its overlap."""
    length = x_T.shape[0]
    symbol_mask = (1 << bits) - 1
    window = 2 * half
    first = -half % length
    m_TG[0] = 0
    _forward(x_T, root_T, first, window, m_TG, scratch, ordered, order, bits, log_states)
    g = np.argmin(m_TG[window])
    for t in range(window - 1, half - 1, -1):
        at = (first + t) % length
        g = _previous(x_T[at] * root_T[at], root_T[at], m_TG[t], g, table, bits, log_states) >> bits
    m_TG[0] = _NEVER
    m_TG[0, g] = 0
    _forward(x_T, root_T, 0, length, m_TG, scratch, ordered, order, bits, log_states)
    for t in range(length - 1, -1, -1):
        state = _previous(x_T[t] * root_T[t], root_T[t], m_TG[t], g, table, bits, log_states)
        out_T[t] = state & symbol_mask
        g = state >> bits


@njit(**_OPTIONS)
def _search(x_NT, root_NT, table, ordered, order, bits, log_states, half, out_NT):  # type: ignore[no-untyped-def]
    """Symbols of all tiles; ``half`` = 0 tries every path."""
    tiles, length = x_NT.shape
    if half == 0:
        for n in range(tiles):
            _enumerate(x_NT[n], root_NT[n], table, bits, log_states, out_NT[n])
        return
    m_TG = np.empty((max(length, 2 * half) + 1, 1 << (log_states - bits)), np.float32)
    scratch = np.empty((ordered.shape[0], ordered.shape[2]), np.float32)
    for n in range(tiles):
        _tail_biting(x_NT[n], root_NT[n], m_TG, scratch, table, ordered, order, bits, log_states, half, out_NT[n])


@njit(**_OPTIONS)
def _nearest(  # type: ignore[no-untyped-def]
    x_BCR, weight_CR, out_BCR, tiles, row, height, column, width, table, ordered, order, bits, log_states, half
):
    """Values next to C × down × across tiles of one size: what ``TileGroup`` and ``_search`` do, in one go."""
    down, across = tiles[2], tiles[3]
    length = height * width
    mask = (1 << log_states) - 1
    x_T, root_T, symbols_T = np.empty(length, np.float32), np.empty(length, np.float32), np.empty(length, np.uint8)
    m_TG = np.empty((max(length, 2 * half) + 1, 1 << (log_states - bits)), np.float32)
    scratch = np.empty((ordered.shape[0], ordered.shape[2]), np.float32)
    for n in range(tiles[0], tiles[1]):
        c, r0, b0 = n // (down * across), row + n // across % down * height, column + n % across * width
        total = np.float32(0)
        for r in range(height):
            total += weight_CR[c, r0 + r]
        per_mean = height / total if total > 0 else np.float32(0)
        for b in range(width):
            for r in range(height):
                x = x_BCR[b0 + b, c, r0 + r]
                x_T[b * height + r] = min(max(x, -_FAR), _FAR)
                root_T[b * height + r] = np.sqrt(weight_CR[c, r0 + r] * per_mean) if total > 0 else np.float32(1)
        if half == 0:
            _enumerate(x_T, root_T, table, bits, log_states, symbols_T)
        else:
            _tail_biting(x_T, root_T, m_TG, scratch, table, ordered, order, bits, log_states, half, symbols_T)
        state = 0
        for t in range(-(log_states // bits) - 1, 0):
            state = ((state << bits) | symbols_T[t % length]) & mask
        for b in range(width):
            for r in range(height):
                state = ((state << bits) | symbols_T[b * height + r]) & mask
                out_BCR[b0 + b, c, r0 + r] = table[state]


def _ordered(table_S: np.ndarray, bits: int, log_states: int) -> tuple[np.ndarray, int]:
    """The table in the order of the loops that suit it, three-dimensional, and which loops these are."""
    symbols, overlaps = 1 << bits, 1 << (log_states - bits)
    if (bits == 2 and log_states >= 4) or (bits == 3 and log_states > 8):
        spread = np.ascontiguousarray(table_S.reshape(symbols, -1, symbols).transpose(2, 0, 1))
        return spread, _PAIRS if bits == 2 else _TRIPLES
    if bits >= 3 and overlaps >= 8:
        return table_S.reshape(1, symbols, overlaps), _SIXTEENS if bits > 3 and overlaps >= 16 else _EIGHTS
    return np.ascontiguousarray(table_S.reshape(1, symbols, overlaps).transpose(0, 2, 1)), _RUNS


@lru_cache(maxsize=32)
def _ordered_once(table_S: Tensor, bits: int, log_states: int) -> tuple[np.ndarray, int]:
    """``_ordered`` of a codebook's own table, which stays; tensors hash by identity."""
    return _ordered(table_S.numpy(), bits, log_states)


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="viterbi")


# a forked child has none of its parent's threads
os.register_at_fork(after_in_child=_pool.cache_clear)


def viterbi(x_NT: Tensor, table_S: Tensor, bits: int, weight_NT: Tensor | None = None) -> Tensor:
    """Symbols (N, T) uint8 of tail-biting paths next to the tiles of x; in torch's number of threads."""
    tiles, length = x_NT.shape
    log_states = table_S.numel().bit_length() - 1
    x = x_NT.detach().to(torch.float32).clamp(-float(_FAR), float(_FAR)).contiguous().numpy()
    root = (torch.ones_like(x_NT) if weight_NT is None else root_weights(weight_NT)).contiguous().numpy()
    table = table_S.detach().to(torch.float32).contiguous().numpy()
    ordered, order = _ordered(table, bits, log_states)
    half = 0 if enumerated(length, bits, log_states) else seam_half(length, bits, log_states)
    out = np.empty((tiles, length), np.uint8)
    _in_threads(
        tiles, length, lambda a, b: _search(x[a:b], root[a:b], table, ordered, order, bits, log_states, half, out[a:b])
    )
    return torch.from_numpy(out)


def nearest(x_BCR: Tensor, weight_CR: Tensor, groups: Iterable[TileGroup], table_S: Tensor, bits: int) -> Tensor:
    """Values (B, C, R) next to the tiles of the groups: one call of a kernel for each group."""
    log_states = table_S.numel().bit_length() - 1
    table = table_S.numpy()
    ordered, order = _ordered_once(table_S, bits, log_states)
    # contiguous, so that the kernel is compiled for one layout
    x, weight, out_BCR = x_BCR.contiguous().numpy(), weight_CR.contiguous().numpy(), torch.empty(x_BCR.shape)
    out = out_BCR.numpy()
    for group in groups:
        length = group.height * group.width
        half = 0 if enumerated(length, bits, log_states) else seam_half(length, bits, log_states)
        where = (group.row, group.height, group.column, group.width)

        def part(a: int, b: int, group: TileGroup = group, half: int = half, where: tuple[int, ...] = where) -> None:
            tiles = (a, b, group.down, group.across)
            _nearest(x, weight, out, tiles, *where, table, ordered, order, bits, log_states, half)

        _in_threads(x.shape[1] * group.down * group.across, length, part)
    return out_BCR


def _in_threads(tiles: int, length: int, part: Callable[[int, int], None]) -> None:
    """Call ``part`` on ranges of tiles, in torch's number of threads where that pays."""
    threads = min(torch.get_num_threads(), tiles, tiles * length // _WEIGHTS_PER_THREAD)
    if threads <= 1:
        part(0, tiles)
        return
    cuts = np.linspace(0, tiles, threads + 1).astype(int).tolist()
    pool = _pool(torch.get_num_threads())
    for job in [pool.submit(part, a, b) for a, b in pairwise(cuts)]:
        job.result()
