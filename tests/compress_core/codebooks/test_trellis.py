"""The trellis codebook: its documented error, exact round trips of any shape, tiles that do not touch each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress_core.codebooks import get_codebook
from compress_core.codebooks.trellis import TrellisCodebook

CPU = torch.device("cpu")
BITS = range(2, 9)
#: what must be reached with tiles of 128 × 2, tail-biting included
GOALS = {
    **{(2, 256): 0.0877, (3, 256): 0.0253, (4, 256): 0.0087},
    **{(2, 1024): 0.0764, (3, 1024): 0.0215, (4, 1024): 0.0063},
    **{(2, 4096): 0.0735, (3, 4096): 0.0190, (4, 4096): 0.0053},
}


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trellis(bits: int, states: int = 256, tile_rows: int = 128) -> TrellisCodebook:
    return TrellisCodebook(bits, CPU, states, tile_rows)


@pytest.mark.parametrize("states", [256, 512, 1024, 2048, 4096])
@pytest.mark.parametrize("bits", BITS)
def test_documented_error_on_a_unit_gaussian(bits: int, states: int) -> None:
    book = trellis(bits, states)
    x = gaussian(128, 1024)
    mse = (book.nearest(x)[0] - x).square().mean().item()
    assert mse == pytest.approx(book.gaussian_mse, rel=0.02 if bits < 6 else 0.05)  # rare far weights
    assert mse > 4.0**-bits  # Shannon's bound


@pytest.mark.parametrize(("bits", "states"), list(GOALS))
def test_goals_are_reached(bits: int, states: int) -> None:
    assert trellis(bits, states).gaussian_mse <= GOALS[bits, states]


@pytest.mark.parametrize("bits", BITS)
def test_more_states_and_memory_beat_single_weights(bits: int) -> None:
    scalar = get_codebook("scalar", bits, CPU).gaussian_mse
    errors = [trellis(bits, states).gaussian_mse for states in (256, 1024, 4096)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.62 * scalar
    # 256 states have no memory at 8 bits
    assert errors[0] < scalar if bits < 8 else errors[0] == pytest.approx(scalar, rel=0.02)


@pytest.mark.parametrize("states", [16384, 65536])
def test_the_largest_tables_go_on_improving(states: int) -> None:
    x = gaussian(128, 32)
    few, many = ((trellis(2, s).nearest(x)[0] - x).square().mean() for s in (1024, states))
    assert many < few


SHAPES = [(1, 1), (1, 2), (1, 9), (2, 1), (5, 3), (8, 8), (127, 2), (128, 4), (129, 3), (300, 2), (344, 7)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("bits", "states"), [(2, 256), (2, 4096), (3, 1024), (5, 256), (8, 256), (8, 4096)])
def test_codes_round_trip_exactly(shape: tuple[int, int], bits: int, states: int) -> None:
    book = trellis(bits, states)
    x = gaussian(*shape)
    parts = book.nearest(x)
    codes = book.codes(parts)
    assert parts.shape == (1, *shape)
    assert codes.shape == shape
    assert codes.dtype == torch.int32
    assert codes.min() >= 0
    assert codes.max() < 2**bits
    assert torch.equal(book.decode(codes), parts[0])
    assert torch.equal(book.encode(x), codes)


@pytest.mark.parametrize("tile_rows", [1, 8, 33, 256])
def test_other_tiles_round_trip_too(tile_rows: int) -> None:
    book = trellis(3, 1024, tile_rows)
    parts = book.nearest(gaussian(70, 6))
    assert torch.equal(book.decode(book.codes(parts)), parts[0])


def test_any_codes_can_be_decoded() -> None:
    book = trellis(4, 1024)
    codes = torch.randint(0, 16, (200, 5), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    assert torch.equal(book.codes(book.decode(codes).unsqueeze(0)), codes)


def test_candidates_and_blocks_are_independent() -> None:
    book = trellis(2, 1024)
    x, weight = gaussian(3, 130, 4), torch.rand(3, 130, generator=torch.Generator().manual_seed(2))
    together = book.nearest(x, weight)
    assert together.shape == (1, 3, 130, 4)
    for c in range(3):
        for column in (0, 2):
            block = (slice(c, c + 1), slice(None), slice(column, column + 2))
            assert torch.equal(book.nearest(x[block], weight[c : c + 1])[0], together[0][block])


def test_heavy_rows_get_the_smaller_error() -> None:
    book = trellis(2, 1024)
    x, weight = gaussian(1, 128, 64), torch.ones(1, 128)
    weight[:, ::2] = 9.0
    error = (book.nearest(x, weight)[0] - x).square().mean((0, 2))
    assert error[::2].mean() < 0.7 * error[1::2].mean()
    same = book.nearest(x, torch.full((1, 128), 5.0))
    assert torch.equal(same, book.nearest(x))


def test_unit_sums_add_up_the_rows_of_a_tile() -> None:
    x = gaussian(2, 300)
    sums = trellis(2).unit_sums(x)
    for c in range(2):
        for rows in (slice(0, 100), slice(100, 200), slice(200, 300)):
            assert torch.allclose(sums[c, rows], x[c, rows].sum().expand(100), atol=1e-5)


def test_bits_are_exact() -> None:
    for bits in BITS:
        book = trellis(bits)
        assert sum(book.code_bits) == bits * book.block


def test_what_is_no_trellis_is_refused() -> None:
    with pytest.raises(ValueError, match="2 to 8 bits"):
        trellis(9)
    with pytest.raises(ValueError, match="power of two"):
        trellis(2, 3000)
    with pytest.raises(ValueError, match="at least one row"):
        trellis(2, 256, 0)
