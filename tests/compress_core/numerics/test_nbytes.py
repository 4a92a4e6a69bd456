import pytest
import torch

from compress_core import CompressionConfig, compress_matrix
from compress_core.errors import RankTooLarge
from compress_core.nbytes import predicted_nbytes
from compress_core.shared_inputs import SharedInput

SHAPES = [(24, 172), (172, 24), (8, 8), (9, 13), (13, 9), (1, 24), (24, 1), (33, 16), (997, 16)]


def configs(limit: int) -> list[CompressionConfig]:
    out = [CompressionConfig(b_q=b, codebook="rtn") for b in (2, 3, 8)]
    ranks = sorted({0, 1, min(3, limit), min(limit, 11)})
    for i, (book, bits) in enumerate([("e8", 2), ("e8", 3), ("e8", 4), ("scalar", 2), ("scalar", 5), ("scalar", 8)]):
        for j, rank in enumerate(ranks):
            factor_bits = (4, 8, 16, (4, 8), (16, 4))[(i + j) % 5]
            out.append(CompressionConfig(b_q=bits, rank=rank, factor_bits=factor_bits, codebook=book, iterations=1))
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_prediction_equals_what_is_stored(shape: tuple[int, int], make_layer) -> None:
    w, h = make_layer(*shape)
    shared = SharedInput(h, w.shape[1], w.device)
    for config in configs(min(shape)):
        compressed = compress_matrix(w, h, config, shared=shared)
        stored = sum(t.numel() * t.element_size() for t in compressed.tensors().values())
        assert compressed.nbytes == stored == predicted_nbytes(config, *shape), config


def test_ragged_widths_cost_under_one_percent() -> None:
    for width in (172, 345, 897, 4867):
        for bits in (2, 3, 4):
            exact = 512 * width * bits / 8
            q_bytes = predicted_nbytes(CompressionConfig(b_q=bits), 512, width) - 512 - 4
            assert q_bytes <= 1.01 * exact


def test_the_rank_is_checked() -> None:
    with pytest.raises(RankTooLarge, match="at most 8"):
        predicted_nbytes(CompressionConfig(b_q=2, rank=9), 8, 64)


def test_row_overhead_is_one_byte() -> None:
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    assert compress_matrix(w, None, CompressionConfig(b_q=2)).nbytes == 16 * 64 // 4 + 16 + 4
