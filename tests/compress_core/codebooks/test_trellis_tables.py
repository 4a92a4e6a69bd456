"""The stored tables: complete, small, distinct, the same on every machine."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from compress_core.codebooks.train_trellis import assigned, first_rows, lloyd, on_grid
from compress_core.codebooks.trellis_tables import (
    PATH,
    TRAINED,
    invertible,
    linear_ranks,
    quantiles,
    stored_tables,
    trellis_table,
)

ALL = [(bits, log_states) for bits in range(2, 9) for log_states in range(8, 17)]


def test_the_file_is_small_and_has_a_table_for_every_trellis() -> None:
    assert PATH.stat().st_size <= 150_000
    names = {f"{part}_{bits}_{m}" for bits, m in ALL for part in ("rows", "spread")}
    assert set(stored_tables()) == names | {f"steps_{bits}_{m}" for bits, m in ALL if 2**m <= TRAINED}


@pytest.mark.parametrize(("bits", "log_states"), ALL)
def test_values_are_distinct_and_centred(bits: int, log_states: int) -> None:
    table = trellis_table(bits, 2**log_states)
    assert table.dtype == torch.float32
    assert table.unique().numel() == 2**log_states
    assert abs(table.mean().item()) < 0.05
    assert table.abs().max().item() < 8
    rows = [int(row) for row in stored_tables()[f"rows_{bits}_{log_states}"]]
    assert invertible(rows)
    assert torch.equal(torch.from_numpy(linear_ranks(rows)).sort().values, torch.arange(2**log_states))


def test_tables_are_what_they_were() -> None:
    """A change of a table makes stored models unreadable: it needs a new version of the format."""
    digests = hashlib.sha256()
    for bits, log_states in ALL:
        digests.update(trellis_table(bits, 2**log_states).numpy().tobytes())
    assert digests.hexdigest()[:16] == "4b4b19472b7ba343"


def test_ranks_are_linear() -> None:
    ranks = linear_ranks([0b011, 0b110, 0b100])
    assert ranks.tolist() == [0b000, 0b100, 0b110, 0b010, 0b011, 0b111, 0b101, 0b001]
    assert not invertible([0b011, 0b110, 0b101])


@pytest.mark.parametrize(("bits", "log_states"), [(2, 8), (4, 10), (7, 8), (8, 8), (5, 9)])
def test_a_climb_starts_from_evenly_spread_cells(bits: int, log_states: int) -> None:
    ranks = linear_ranks(first_rows(bits, log_states, np.random.default_rng(0)))
    cells = ranks >> (log_states - bits)
    for states in (cells.reshape(-1, 2**bits), cells.reshape(2**bits, -1).T):  # that follow one; that precede one
        assert all(sorted(row) == list(range(2**bits)) for row in states.tolist())


def test_lloyd_lowers_the_error() -> None:
    start = quantiles(linear_ranks(first_rows(3, 8, np.random.default_rng(0))), 1.0)
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(3))
    trained = lloyd(start, 3, 20, 64)
    assert assigned(trained, x, 3)[1] < 0.97 * assigned(start, x, 3)[1]


def test_equal_values_are_pushed_apart_on_the_grid() -> None:
    steps = on_grid(np.array([0.0, 0.5, 0.0, 0.0, -1.0, 0.0]))
    assert len(set(steps.tolist())) == 6
    assert np.abs(steps * 2.0**-12 - [0, 0.5, 0, 0, -1, 0]).max() < 4 * 2.0**-12


@pytest.mark.parametrize(("bits", "states"), [(1, 256), (9, 256), (2, 128), (2, 131072), (2, 3000)])
def test_what_has_no_table_is_refused(bits: int, states: int) -> None:
    with pytest.raises(ValueError, match=r"2 to 8 bits|power of two"):
        trellis_table(bits, states)
