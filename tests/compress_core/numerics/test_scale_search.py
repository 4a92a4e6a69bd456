"""The search of row scales: rows that share codewords choose together, all others on their own."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from compress_core import CompressionConfig
from compress_core.context import InputContext, prepare_input
from compress_core.descent import make_curvature
from compress_core.rounding import RoundedRows, Rounder

CPU = torch.device("cpu")
STEPS = (-8, -3, 0, 4, 9)
WIDTH = 44
#: rows of each kind of tails, and of a trellis tile of 300 rows
PART = 100


@dataclass(frozen=True)
class Search:
    """A rotated weight (300 rows with heavy tails, normal ones, none), its input, and what rounds it."""

    w_OI: Tensor
    input: InputContext
    rounder: Rounder

    @classmethod
    def make(cls, make_layer, codebook: str) -> Search:
        g = torch.Generator().manual_seed(0)
        normal = torch.randn(3 * PART, WIDTH, generator=g)
        heavy = normal[:PART] / (torch.rand(PART, WIDTH, generator=g) + 0.1)
        w_OI = torch.cat([heavy, normal[PART : 2 * PART], normal[2 * PART :].sign()])
        w_OI = w_OI / w_OI.square().mean(1, keepdim=True).sqrt()
        rounder = Rounder.make(w_OI, CompressionConfig(b_q=3, codebook=codebook, states=256))
        return cls(w_OI, prepare_input(make_layer(1, WIDTH)[1], WIDTH, 0, CPU), rounder)

    def units(self, steps: tuple[int, ...]) -> RoundedRows:
        block = self.rounder.codebook.block
        curvature = make_curvature(self.input.root, block)
        natural_O = self.rounder.natural_codes(self.w_OI)
        return self.rounder.search_units(self.w_OI, self.input.feedback(block), curvature, natural_O, steps, 1)

    def rows(self, steps: tuple[int, ...]) -> Tensor:
        feedback = self.input.feedback(self.rounder.codebook.block)
        natural_O = self.rounder.natural_codes(self.w_OI)
        return self.rounder.search_rows(self.w_OI, feedback, self.input.root, natural_O, steps)

    def errors(self, q: RoundedRows) -> Tensor:
        """tr(D H Dᵀ) of the rows that share codewords, in the place of each."""
        d_IO = (self.w_OI - q.rounded.value_OI).T
        return self.rounder.codebook.unit_sums(self.input.root.energies(d_IO)[None])[0]

    def moves(self, row_codes_O: Tensor) -> list[int]:
        """Steps up from the rows' root mean squares."""
        return (self.rounder.natural_codes(self.w_OI) - row_codes_O).tolist()


@pytest.mark.parametrize("codebook", ["scalar", "e8", "trellis"])
def test_each_unit_takes_its_best_step(codebook: str, make_layer) -> None:
    search = Search.make(make_layer, codebook)
    best = search.errors(search.units(STEPS))
    alone = torch.stack([search.errors(search.units((step,))) for step in STEPS])
    # sums of another shape may flip a tie
    assert torch.allclose(best, alone.amin(0), rtol=0.03)
    assert (best[:PART] < 0.95 * alone[STEPS.index(0), :PART]).any()


@pytest.mark.parametrize("codebook", ["scalar", "trellis"])
def test_rows_of_a_trellis_tile_move_together(codebook: str, make_layer) -> None:
    search = Search.make(make_layer, codebook)
    moves_O = search.moves(search.units(STEPS).row_codes_O)
    assert set(moves_O) <= set(STEPS)
    tiles = [set(moves_O[first : first + PART]) for first in (0, PART, 2 * PART)]
    if codebook == "trellis":
        assert [len(tile) for tile in tiles] == [1, 1, 1]
        assert max(tiles[0]) > max(tiles[2])
    else:
        assert len(tiles[0]) > 1


def test_rows_choose_their_first_scale_one_by_one(make_layer) -> None:
    search = Search.make(make_layer, "trellis")
    moves = search.moves(search.rows(STEPS))
    assert set(moves) <= set(STEPS)
    assert len(set(moves[:PART])) > 1
    heavy, normal, flat = (sum(moves[first : first + PART]) for first in (0, PART, 2 * PART))
    assert heavy > normal > flat


@pytest.mark.parametrize("codebook", ["scalar", "e8", "trellis"])
def test_zero_rows_keep_their_scale_of_zero(codebook: str, make_layer) -> None:
    search = Search.make(make_layer, codebook)
    search.w_OI[[3, 170]] = 0
    q = search.units(STEPS)
    assert (q.scale_O == 0).nonzero()[:, 0].tolist() == [3, 170]
    assert (q.rounded.value_OI[[3, 170]] == 0).all()
