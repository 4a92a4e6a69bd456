"""Makes ``trellis_tables.npz``: the values of the trellis's states, for a unit Gaussian source.

    python -m compress_core.codebooks.train_trellis BITS LOG_STATES [--climb N] [--lloyd N] [--tiles N]

Two steps for each pair (bits, L):

1. *Order.* The rank of a state's value among all values is A·s, A an invertible L × L matrix over GF(2), so that the
   values are quantiles of a Gaussian in an order that a few integers describe. The first k bits of the rank, the
   *cell*, start as last symbol ⊕ oldest symbol: both the 2^k states that follow one state and those that precede one
   overlap then lie evenly spread (Ungerboeck's rule for trellis-coded modulation). The other bits, where in its cell a
   value lies, depend on the overlap alone. A climb flips bits of A and keeps what lowers the error.
2. *Values* (up to ``TRAINED`` states). Lloyd's iteration on the trellis: each value becomes the mean of the weights
   that the search gave to its state; sums of earlier rounds count on, so that the last tables average over many.

The file in use came of 600 to 1500 flips a table up to 2^10 and at 2^12 states, 250 at 2^11, 40 to 120 beyond: there
the order of 2^12 states, extended, is a second start, and more flips would still find better ones.

Nothing here runs when weights are compressed: the file is read as it is, so all machines have the same tables.
"""

from __future__ import annotations

import argparse
import logging
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress_core.codebooks.trellis_tables import (
    GRID,
    PATH,
    TRAINED,
    invertible,
    linear_ranks,
    quantiles,
    stored_tables,
)
from compress_core.codebooks.viterbi import states_of, viterbi

TILE = 256
#: share of the earlier rounds' sums that counts on in Lloyd's iteration
_MEMORY = 0.9

log = logging.getLogger(__name__)


def assigned(table_S: NDArray[np.float64], x_NT: Tensor, bits: int) -> tuple[Tensor, float]:
    """States (N, T) that the search gives to the weights, and the mean squared error."""
    values_S = torch.from_numpy(table_S.astype(np.float32))
    states_NT = states_of(viterbi(x_NT, values_S, bits), bits, len(table_S).bit_length() - 1).long()
    return states_NT, (values_S[states_NT] - x_NT).square().mean().item()


def first_rows(bits: int, log_states: int, rng: np.random.Generator) -> list[int]:
    """Rows of A, the first bit of the rank first: cells by Ungerboeck's rule, places in them at random."""
    free = log_states - bits
    both = min(bits, free)  # bits of a symbol that overlaps keep; the others tell parallel steps apart
    cells = [1 << (bits - 1 - i) for i in range(bits - both)]
    cells += [(1 << (both - 1 - i)) | (1 << (log_states - 1 - i)) for i in range(both)]
    while True:
        rows = cells + [int(rng.integers(1, 1 << free)) << bits for _ in range(free)]
        if invertible(rows):
            return rows


def extended(rows: list[int], log_states: int) -> list[int]:
    """Rows of a larger A with the order of ``rows``: older symbols only tell neighbouring ranks apart."""
    return rows + [1 << bit for bit in range(len(rows), log_states)]


def climb(
    bits: int, log_states: int, rounds: int, tiles: int, seed: int, start: list[int] | None = None
) -> tuple[list[int], float, float]:
    """The best rows of A that random flips reach, the spread of the quantiles, and the error on the tiles used."""
    rng = np.random.default_rng(seed)
    x_NT = torch.randn(tiles, TILE, generator=torch.Generator().manual_seed(7))
    rows, spread = start or first_rows(bits, log_states, rng), 1.0 if bits < 4 else 1.22
    error = assigned(quantiles(linear_ranks(rows), spread), x_NT, bits)[1]
    for _ in range(rounds):
        tried, wider = list(rows), spread
        if rng.random() < 0.05:
            wider *= float(np.exp(rng.normal(scale=0.03)))
        else:
            for _ in range(int(rng.integers(1, 3))):
                row = int(rng.integers(log_states))
                tried[row] ^= 1 << int(rng.integers(0 if row < bits else bits, log_states))
        if not invertible(tried):
            continue
        found = assigned(quantiles(linear_ranks(tried), wider), x_NT, bits)[1]
        if found < error:
            rows, spread, error = tried, wider, found
    return rows, spread, error


def lloyd(table_S: NDArray[np.float64], bits: int, rounds: int, tiles: int) -> NDArray[np.float64]:
    """The table after Lloyd's iteration on fresh weights each round."""
    generator = torch.Generator().manual_seed(1)
    count_S, sum_S = np.zeros(len(table_S)), np.zeros(len(table_S))
    for _ in range(rounds):
        x_NT = torch.randn(tiles, TILE, generator=generator)
        states = assigned(table_S, x_NT, bits)[0].reshape(-1).numpy()
        count_S = _MEMORY * count_S + np.bincount(states, minlength=len(table_S))
        sum_S = _MEMORY * sum_S + np.bincount(states, weights=x_NT.reshape(-1).double().numpy(), minlength=len(table_S))
        table_S = np.where(count_S > 1, sum_S / np.maximum(count_S, 1), table_S)
    return table_S


def on_grid(table_S: NDArray[np.float64]) -> NDArray[np.int16]:
    """Multiples of GRID next to the values, no two the same."""
    order = np.argsort(table_S, kind="stable")
    steps = np.round(table_S[order] / GRID).astype(np.int64)
    # push apart from the middle outwards, so that errors do not pile up on one side
    middle = len(steps) // 2
    for i in range(middle + 1, len(steps)):
        steps[i] = max(steps[i], steps[i - 1] + 1)
    for i in range(middle - 1, -1, -1):
        steps[i] = min(steps[i], steps[i + 1] - 1)
    out = np.empty(len(steps), np.int16)
    out[order] = steps
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bits", type=int)
    parser.add_argument("log_states", type=int)
    parser.add_argument("--climb", type=int, default=1500, help="flips that are tried, from each start")
    parser.add_argument("--starts", type=int, default=1, help="random starts of the climb")
    parser.add_argument("--lloyd", type=int, default=40, help="rounds of Lloyd's iteration")
    parser.add_argument(
        "--tiles", type=int, default=256, help="tiles a flip is judged by; Lloyd takes eight times as many"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    bits, log_states = args.bits, args.log_states
    starts = [climb(bits, log_states, args.climb, args.tiles, seed) for seed in range(args.starts)]
    arrays: dict[str, Any] = dict(stored_tables()) if PATH.exists() else {}
    for known in range(8, log_states + 1):  # what is stored already goes on from where it is
        if f"rows_{bits}_{known}" in arrays and (known == log_states or known >= TRAINED.bit_length() - 1):
            rows = extended(arrays[f"rows_{bits}_{known}"].tolist(), log_states)
            starts.append(climb(bits, log_states, args.climb, args.tiles, args.starts, rows))
    rows, spread, _ = min(starts, key=lambda found: found[2])
    table_S = quantiles(linear_ranks(rows), spread)
    arrays[f"rows_{bits}_{log_states}"] = np.array(rows, np.uint16)
    arrays[f"spread_{bits}_{log_states}"] = np.array(spread, np.float32)
    x_NT = torch.randn(2048, TILE, generator=torch.Generator().manual_seed(99))
    before = assigned(table_S, x_NT, bits)[1]
    if 2**log_states <= TRAINED:
        steps_S = on_grid(lloyd(table_S, bits, args.lloyd, 8 * args.tiles))
        arrays[f"steps_{bits}_{log_states}"] = steps_S
        table_S = steps_S.astype(np.float64) * GRID
    np.savez_compressed(PATH, allow_pickle=False, **dict(sorted(arrays.items())))
    error = assigned(table_S, x_NT, bits)[1]
    log.info("%d bits, 2^%d states: %.5g, in its order alone %.5g", bits, log_states, error, before)


if __name__ == "__main__":
    main()
