"""What is done otherwise where a matrix is large, done to small ones: same results, and memory as promised."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from compress_core import (
    CompressionConfig,
    cholesky,
    compress_matrix,
    context,
    error_metrics,
    gptq,
    incoherence,
    ldlq,
    rounding,
    sweep_matrix,
)
from compress_core import rooted_hessian as rooted
from compress_core.rounding import Rounder

CODEBOOKS = ["scalar", "e8", "trellis"]


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factorise in float32, keep no factor."""
    for module in (rooted, context, gptq):
        monkeypatch.setattr(module, "EXACT_WIDTH", 0)


def in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is done piece by piece in pieces a thousandth as large, or a 32nd as wide."""
    monkeypatch.setattr(rounding, "_CHUNK", (1 << 14, 1 << 14))
    monkeypatch.setattr(context, "_STRIP", 1 << 12)
    monkeypatch.setattr(incoherence, "_STRIP", 1 << 13)
    monkeypatch.setattr(error_metrics, "_ENTRIES", 1 << 12)
    monkeypatch.setattr(rooted, "_PANEL", 16)
    monkeypatch.setattr(cholesky, "_BLOCK", 16)
    monkeypatch.setattr(ldlq, "_PANEL", 16)


def errors(w: Tensor, h: Tensor, codebook: str) -> Tensor:
    configs = [
        CompressionConfig(b_q=2, rank=rank, codebook=codebook, factor_bits=bits, states=256)
        for rank, bits in ((0, 4), (6, 4), (6, 16))
    ]
    return torch.tensor([found.calibration_weighted_error for found in sweep_matrix(w, h, configs)])


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_float32_factors_are_as_good(codebook: str, make_layer, in_float32, monkeypatch: pytest.MonkeyPatch) -> None:
    w, h = make_layer(40, 90)
    got = errors(w, h, codebook)
    monkeypatch.undo()
    # other roundings of the feedback flip single weights
    assert torch.allclose(got, errors(w, h, codebook), rtol=0.08)


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_pieces_give_what_the_whole_gives(codebook: str, make_layer, monkeypatch: pytest.MonkeyPatch) -> None:
    w, h = make_layer(300, 44)
    whole = errors(w, h, codebook)
    in_small_pieces(monkeypatch)
    assert torch.allclose(errors(w, h, codebook), whole, rtol=0.03)


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_chunks_part_no_rows_that_share_codewords(codebook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without feedback there are no sums that could round otherwise: the codewords are the same to the last bit."""
    w = torch.randn(301, 26, generator=torch.Generator().manual_seed(1))
    shared = context.prepare_input(None, 26, 0, torch.device("cpu"))
    rounder = Rounder.make(w, CompressionConfig(b_q=3, codebook=codebook, states=256))
    found, chunks = [], []
    for chunk in (1 << 22, 130 * 26, 1):
        monkeypatch.setattr(rounding, "_CHUNK", (chunk, chunk))
        chunks.append(len(list(rounder._chunks(w))))
        q = rounder.round(w, shared.feedback(rounder.codebook.block), rounder.natural_codes(w))
        found.append(q.rounded.parts_PIO)
    assert chunks == ([2, 3, 3] if codebook == "trellis" else [1, 3, 301])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_hessian_may_be_loaded_when_it_is_needed(make_layer) -> None:
    w, h = make_layer(24, 40)
    loads: list[weakref.ref[Tensor]] = []

    def load() -> Tensor:
        loaded = h.clone()
        loads.append(weakref.ref(loaded))
        return loaded

    def nothing_is_held(done: float) -> None:
        assert all(loaded() is None for loaded in loads)

    config = CompressionConfig(b_q=2, rank=3, states=256)
    compressed = compress_matrix(w, load, config, progress=nothing_is_held)
    assert torch.equal(compressed.blob(), compress_matrix(w, h, config).blob())
    assert len(loads) == 1
    configs = [config, CompressionConfig(b_q=3, codebook="gptq")]
    pairs = zip(sweep_matrix(w, load, configs), sweep_matrix(w, h, configs), strict=True)
    assert all(a.calibration_weighted_error == b.calibration_weighted_error for a, b in pairs)
    nothing_is_held(1.0)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(112, 592), (32, 924)], ids=["3584 × 18944", "1024 × 29568"])
def test_memory(shape: tuple[int, int], live_bytes, in_float32, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 × W + 3 × H, with H loaded where it is needed, at a 32nd of both sides."""
    in_small_pieces(monkeypatch)
    g = torch.Generator().manual_seed(0)
    w_OI = torch.randn(*shape, generator=g)
    x = torch.randn(shape[1], 40, generator=g)

    def load() -> Tensor:
        h_II = x @ x.T
        h_II.diagonal().add_(1)
        return h_II

    w_bytes, h_bytes = 4 * shape[0] * shape[1], 4 * shape[1] ** 2
    with live_bytes() as live:
        sweep_matrix(w_OI, load, [CompressionConfig(b_q=2, rank=2, codebook="scalar")])
    assert 2 * h_bytes < live.most < 3 * w_bytes + 3 * h_bytes


def test_memory_of_gptq(live_bytes, in_float32, monkeypatch: pytest.MonkeyPatch) -> None:
    """3 × H, the root of H that other codebooks would use among them, and pieces of the weight."""
    in_small_pieces(monkeypatch)
    monkeypatch.setattr(gptq, "_WIDE_ENTRIES", 300)  # 1 row, at 9 steps
    w_OI = torch.randn(2, 300, generator=torch.Generator().manual_seed(0))
    x = torch.randn(300, 40, generator=torch.Generator().manual_seed(1))
    with live_bytes() as live:
        sweep_matrix(w_OI, lambda: x @ x.T, [CompressionConfig(b_q=2, codebook="gptq")])
    h_bytes = 4 * 300**2
    assert 2 * h_bytes < live.most < 3.7 * h_bytes
