import pytest
import torch

from compress_core.codebooks import Codebook, get_codebook
from compress_core.codebooks.e8 import e8p_table
from compress_core.codebooks.rtn import rtn_codes, rtn_scales, rtn_values
from compress_core.codebooks.scalar import lloyd_max_levels

CPU = torch.device("cpu")
ALL = [("scalar", b) for b in range(2, 9)] + [("e8", b) for b in (2, 3, 4)]


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "bits"), ALL)
def test_documented_error_on_a_unit_gaussian(name: str, bits: int) -> None:
    book = get_codebook(name, bits, CPU)
    x = gaussian(320_000 // book.block, book.block)
    mse = (book.nearest(x).sum(0) - x).square().mean().item()
    assert mse == pytest.approx(book.gaussian_mse, rel=0.03)
    assert mse > 4.0**-bits  # Shannon's bound


@pytest.mark.parametrize(("bits", "published"), [(2, 0.1175), (3, 0.0345), (4, 0.0095)])
def test_lloyd_max_matches_the_published_errors(bits: int, published: float) -> None:
    assert get_codebook("scalar", bits, CPU).gaussian_mse == pytest.approx(published, rel=0.003)


def test_lloyd_max_levels_at_two_bits() -> None:
    assert lloyd_max_levels(2) == pytest.approx((-1.5104, -0.4528, 0.4528, 1.5104), abs=1e-4)


def test_e8_beats_scalar_at_every_bit() -> None:
    for bits in (2, 3, 4):
        assert get_codebook("e8", bits, CPU).gaussian_mse < get_codebook("scalar", bits, CPU).gaussian_mse
    assert get_codebook("e8", 2, CPU).gaussian_mse <= 0.0914


@pytest.mark.parametrize(("name", "bits"), ALL)
@pytest.mark.parametrize("source", ["gaussian", "zero", "huge", "ties"])
def test_codes_round_trip_exactly(name: str, bits: int, source: str) -> None:
    book = get_codebook(name, bits, CPU)
    x = {
        "gaussian": gaussian(500, book.block),
        "zero": torch.zeros(3, book.block),
        "huge": 1e6 * gaussian(50, book.block),
        "ties": torch.tensor([[0.5, -0.25, 0.25, 1.25]]).repeat(6, 4)[:, : book.block],
    }[source].contiguous()
    parts = book.nearest(x)
    codes = book.codes(parts)
    assert parts.shape == (book.stages, *x.shape)
    assert codes.shape == (x.shape[0], len(book.code_bits))
    assert sum(book.code_bits) == bits * book.block
    assert all(c.min() >= 0 and c.max() < 2**n for c, n in zip(codes.T, book.code_bits, strict=True))
    assert torch.equal(book.decode(codes), parts.sum(0))
    assert torch.equal(book.encode(x), codes)


def brute_force(book: Codebook, x: torch.Tensor) -> torch.Tensor:
    """Least squared distance to any of the 65,536 codewords."""
    words = book.decode(torch.arange(65536, dtype=torch.int32)[:, None])
    score = x @ words.T - 0.5 * words.square().sum(-1)
    return x.square().sum(-1) - 2 * score.amax(-1)


def test_e8_search_is_exact() -> None:
    book = get_codebook("e8", 2, CPU)
    x = torch.cat([gaussian(400, 8), 2.5 * gaussian(100, 8, 1)])
    found = (book.nearest(x)[0] - x).square().sum(-1)
    assert torch.allclose(found, brute_force(book, x), atol=2e-4)


def test_e8_codewords_are_distinct_and_lie_in_the_lattice() -> None:
    book = get_codebook("e8", 2, CPU)
    words = book.decode(torch.arange(65536, dtype=torch.int32)[:, None]) * 1.03
    assert torch.unique((words * 4).round().to(torch.int64), dim=0).shape[0] == 65536
    shift = torch.where(torch.arange(65536) & 1 == 1, -0.25, 0.25)[:, None]
    lattice = words - shift  # half-odd coordinates with an even sum: D8 + 1/2
    assert torch.allclose((lattice - 0.5).round() + 0.5, lattice, atol=1e-5)
    assert (lattice.sum(-1).round().to(torch.int64) % 2 == 0).all()


def test_e8_table_is_closed_under_permutations() -> None:
    table = e8p_table()
    assert table.shape == (256, 8)
    rows = {tuple(r) for r in table.tolist()}
    assert len(rows) == 256
    assert {tuple(r) for r in table[:, [1, 0, 2, 3, 4, 5, 7, 6]].tolist()} == rows


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rtn_stays_within_half_a_step(bits: int) -> None:
    w = gaussian(5, 37)
    w[2] = 0
    scales = rtn_scales(w, bits)
    codes = rtn_codes(w, scales, bits)
    assert codes.min() >= 0
    assert codes.max() < 2**bits
    error = (rtn_values(codes, scales, bits) - w).abs()
    assert (error <= 0.501 * scales.float()[:, None] + 1e-3 * w.abs()).all()
    assert (rtn_values(codes, scales, bits)[2] == 0).all()


def test_unknown_codebooks_are_refused() -> None:
    with pytest.raises(ValueError, match="no codebook"):
        get_codebook("lattice", 2, CPU)
    with pytest.raises(ValueError, match="2, 3 or 4"):
        get_codebook("e8", 5, CPU)
    with pytest.raises(ValueError, match="2 to 8"):
        get_codebook("scalar", 9, CPU)
