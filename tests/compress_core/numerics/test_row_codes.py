"""Codes of Q decode in strips of rows exactly as all at once."""

from __future__ import annotations

import pytest
import torch

from compress_core.codebooks import get_codebook
from compress_core.codebooks.trellis import TrellisCodebook
from compress_core.row_codes import RowCodes

CPU = torch.device("cpu")


def _random_codes(shape: tuple[int, ...], bits: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.int32)


@pytest.mark.parametrize("rows", [1, 17, 127, 128, 129, 255, 300, 513, 1000, 8961])
@pytest.mark.parametrize("most", [1, 100, 128, 400, 10_000])
def test_trellis_strips_cover_the_rows_and_decode_alone(rows: int, most: int) -> None:
    codebook = TrellisCodebook(3, CPU, states=256)
    strips = list(codebook.strips(rows, most))
    assert [row for strip in strips for row in range(rows)[strip]] == list(range(rows))
    assert all(strip.stop - strip.start <= max(most, 128) for strip in strips)
    codes = _random_codes((rows, 3), 3)
    whole = codebook.decode(codes)
    for strip in strips:
        assert torch.equal(codebook.decode(codes[strip]), whole[strip])


@pytest.mark.parametrize(("name", "bits"), [("scalar", 3), ("trellis", 2), ("e8", 2), ("e8", 3), (None, 4)])
def test_values_do_not_depend_on_the_strips(name: str | None, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = 301, 20
    codebook = None if name is None else get_codebook(name, bits, CPU)
    tail = None
    codes = _random_codes((rows, columns), bits)
    if name == "e8":
        codes = _random_codes((rows, 2, bits - 1), 8)
        tail = (_random_codes((rows, 4), bits), get_codebook("scalar", bits, CPU))
    row_codes = RowCodes((rows, columns), codes, codebook, bits, tail)
    whole = row_codes.values()
    assert whole.shape == (rows, columns)
    monkeypatch.setattr("compress_core.row_codes._STRIP", 50 * columns)
    strips = list(row_codes.strips())
    assert len(strips) > 2
    assert torch.equal(torch.cat([values for _, values in strips]), whole)
    assert torch.equal(row_codes.values(), whole)
