"""The spectrum of what rounding leaves: that of D·H^½, for rotated configs of rank 0 in sweeps with ranks."""

from dataclasses import replace

import pytest
import torch

from compress_core import CompressionConfig, compress_matrix, residual_spectrum, sweep_matrix

COARSE = CompressionConfig(b_q=2, codebook="scalar")


@pytest.mark.parametrize(("exact", "tolerance"), [(512, 1e-3), (0, 0.05)])
def test_it_is_the_spectrum_of_the_weighted_residual(
    make_layer, monkeypatch: pytest.MonkeyPatch, exact: int, tolerance: float
) -> None:
    monkeypatch.setattr(residual_spectrum, "_EXACT", exact)
    w, h = make_layer(40, 52)
    configs = [COARSE, replace(COARSE, rank=9), CompressionConfig(b_q=2, codebook="gptq")]
    found = sweep_matrix(w, h, configs)
    spectrum = found[0].residual_spectrum
    assert spectrum is not None
    assert spectrum.ranks == (1, 2, 4, 8, 16, 18)
    d = (w - compress_matrix(w, h, COARSE).dequantize()).double()
    values, vectors = torch.linalg.eigh(h.double())
    energies = torch.linalg.svdvals(d @ (vectors * values.clamp(min=0).sqrt())).square()
    expected = [float(energies[:rank].sum() / energies.sum()) for rank in spectrum.ranks]
    assert spectrum.captured == pytest.approx(expected, rel=tolerance)
    assert found[1].residual_spectrum is None
    assert found[2].residual_spectrum is None


def test_it_ends_at_the_whole_matrix(make_layer) -> None:
    w, h = make_layer(12, 20)
    spectrum = sweep_matrix(w, h, [COARSE, replace(COARSE, rank=12)])[0].residual_spectrum
    assert spectrum is not None
    assert (spectrum.ranks[-1], spectrum.captured[-1]) == (12, pytest.approx(1.0, abs=1e-6))


def test_without_ranks_or_a_residual_there_is_none(make_layer) -> None:
    w, h = make_layer(12, 20)
    assert sweep_matrix(w, h, [COARSE])[0].residual_spectrum is None
    assert sweep_matrix(w, h, [COARSE, replace(COARSE, rank=2)], spectrum_rank=0)[0].residual_spectrum is None
    assert sweep_matrix(0 * w, h, [COARSE], spectrum_rank=4)[0].residual_spectrum is None
    assert sweep_matrix(w, h, [COARSE], spectrum_rank=4)[0].residual_spectrum is not None
